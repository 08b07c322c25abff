"""A call to the rerank service, whatever the protocol that it came by, and how it can fail."""

from __future__ import annotations

from dataclasses import dataclass

from retrv_r1.types import Item, ModeChoice, Reading, RetrvError


@dataclass(frozen=True)
class RankCall:
    """A query with its candidates and how they are to be ranked.

    Args:
        query: text, picture, or both.
        candidates: items to rank; order and duplicates are kept.
        instruction: wording of the task; the checkpoint's own when None.
        mode: ``"reason"``, ``"fast"``, or ``"auto"`` to reason only where the fast answer is
            uncertain.
        reading: how candidates are read; see :meth:`retrv_r1.Reranker.rank`.
        top_n: candidates to return; all when None.
        max_inspections: limit of inspections; the checkpoint's own when None.
        max_reasoning_tokens: limit of a chain of thought; the engine's default when None.
        votes: number of chains of thought.
        budget_ms: milliseconds after which reasoning is cut and the best answer so far returned.
        deadline_ms: milliseconds after which the call fails.
        picture_seconds: seconds that reading its pictures took; they are billed.
        model: name of the model that was asked for; the service has one and does not read this.
    """

    query: Item
    candidates: tuple[Item, ...]
    instruction: str | None = None
    mode: ModeChoice = "reason"
    reading: Reading = "compressed"
    top_n: int | None = None
    max_inspections: int | None = None
    max_reasoning_tokens: int | None = None
    votes: int = 1
    budget_ms: float | None = None
    deadline_ms: float | None = None
    picture_seconds: float = 0.0
    model: str | None = None


class QueueFull(RetrvError):
    """More calls wait than the service holds: ask again later.

    Attributes:
        retry_after: seconds after which there will probably be room.
    """

    def __init__(self, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(f"the queue is full: try again in {retry_after:.0f} s")


class NotReady(RetrvError):
    """The model is being loaded, the service is shutting down, or its engine is lost.

    Attributes:
        retry_after: seconds after which to ask again.
    """

    def __init__(self, reason: str, retry_after: float = 1.0) -> None:
        self.retry_after = retry_after
        super().__init__(reason)


class EngineFailed(RetrvError):
    """The engine failed while it worked on the call; the service goes on, so ask again."""
