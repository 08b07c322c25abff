"""What is rolled out, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from retrv_engine import Request
from retrv_r1.rerank.feature_encoder import Features
from retrv_r1.rollout.replay import Replay
from retrv_r1.types import Item, ItemLike


@dataclass(frozen=True)
class Task:
    """A query with candidates, and which of them is right.

    Args:
        query, candidates: items, or what :meth:`Item.of` makes items of.
        answer: number of the right candidate; None if there is none, so that no answer is right.
        instruction: wording of the task; the checkpoint's own when None.
    Raises:
        ItemError: something that is no item.
        ValueError: no candidates, or an answer that is none of them.
    """

    query: ItemLike
    candidates: Sequence[ItemLike]
    answer: int | None
    instruction: str | None = None

    def __post_init__(self) -> None:
        if not self.candidates:
            raise ValueError("a task needs at least one candidate")
        if self.answer is not None and not 0 <= self.answer < len(self.candidates):
            raise ValueError(
                f"answer {self.answer} is none of {len(self.candidates)} candidates: count from 0"
            )
        _ = self.items  # raises here rather than in training

    @cached_property
    def items(self) -> list[Item]:
        """The query, then the candidates."""
        return [Item.of(one) for one in (self.query, *self.candidates)]


@dataclass(frozen=True, eq=False)
class Group:
    """A task as the rollouts of one prompt share it.

    Attributes:
        features: features of the query, then of the candidates.
        request: what the engine is asked, with the sampling of no rollout in particular.
    """

    task: Task
    features: Sequence[Features]
    request: Request


@dataclass(frozen=True, eq=False)
class Rollout:
    """A sampled chain with its answer.

    An *empty* rollout was not done in time: it has no tokens and no answer, and no reward counts.

    Attributes:
        tokens: all written tokens, forced ones included.
        logprobs: log-probability of each under the distribution that it was taken from; 0.0 for a
            forced one.
        answer: number of the chosen candidate; None for an empty rollout.
        inspected: numbers of the inspected candidates.
        well_formed: whether the policy closed its reasoning itself, and preferred a permitted token
            wherever it had a choice.
        truncated: whether the reasoning had reached its limit, so that the engine closed it.
        margin: log-probability of the right label over its best rival at the answer, in nats; None
            without a right one or without rivals.
        replay: the rows and choices of prompt and tokens; None for an empty rollout.
    """

    group: Group
    tokens: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    answer: int | None = None
    inspected: Sequence[int] = ()
    well_formed: bool = False
    truncated: bool = False
    margin: float | None = None
    replay: Replay | None = field(default=None, repr=False)

    @property
    def task(self) -> Task:
        """The task that was rolled out."""
        return self.group.task

    @property
    def empty(self) -> bool:
        """Whether it was not done in time."""
        return self.replay is None

    @property
    def correct(self) -> bool:
        """Whether it chose the right candidate."""
        return self.answer is not None and self.answer == self.task.answer
