"""The answer of an availability check."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Availability:
    """Whether something can be used, and the reason either way. Its truth value is ``ok``."""

    ok: bool
    reason: str

    def __bool__(self) -> bool:
        return self.ok
