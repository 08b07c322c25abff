"""Who may run, who waits, and who is sent away."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """How much a service takes on.

    Args:
        running: calls that are ranked at the same time.
        waiting: calls that wait for their turn; more are refused with :class:`QueueFull`.
        deadline: seconds after which a call without a deadline of its own fails; None for never.
    """

    running: int = 32
    waiting: int = 128
    deadline: float | None = None
