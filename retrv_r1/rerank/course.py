"""What the conductor knows of a ranking on its way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Real

from retrv_engine import DeadlineExceeded, Handle, Output
from retrv_r1.rerank.feature_encoder import Features
from retrv_r1.rerank.meter import Meter
from retrv_r1.rerank.ranking import Ranking
from retrv_r1.rerank.steps import Round, Steps
from retrv_r1.types import Item, RetrvError

CLOSED = "the reranker is closed: make a new one"


def time_of(name: str, seconds: float | None) -> float:
    """The time, of ``perf_counter``, some seconds from now; infinite for None.

    Raises:
        ValueError: it is no number of seconds, 0 or more.
    """
    if seconds is None:
        return math.inf
    if not isinstance(seconds, Real) or not seconds >= 0:
        raise ValueError(f"{name} must be seconds, 0 or more, got {seconds!r}")
    return time.perf_counter() + seconds


@dataclass(eq=False)
class Course:
    """A ranking on its way.

    Attributes:
        deadline, budget: times after which it fails, or is cut, in seconds of ``perf_counter``.
        turn: when its next items are encoded, among rankings of one priority.
        make_steps: makes its steps of its items' features.
        features: of its first items.
        since: time since which it waits for a thread here.
        round: prompts that the engine answers now.
        handles: the engine's handles for them.
        open: handles that have not ended.
    """

    ranking: Ranking
    items: Sequence[Item]
    make_steps: Callable[[Sequence[Features]], Steps]
    meter: Meter
    priority: int = 0
    deadline: float = math.inf
    budget: float = math.inf
    turn: int = 0
    features: list[Features] = field(default_factory=list)
    since: float = field(default_factory=time.perf_counter)
    steps: Steps | None = None
    round: Round | None = None
    handles: list[Handle[Output]] = field(default_factory=list)
    open: int = 0

    @property
    def order(self) -> tuple[int, int]:
        """Sort key of the order in which items are encoded."""
        return -self.priority, self.turn

    def check(self) -> None:
        """Raises DeadlineExceeded when it is late."""
        if time.perf_counter() > self.deadline:
            raise self.lateness()

    def lateness(self) -> DeadlineExceeded:
        """The error of a ranking that is late."""
        return DeadlineExceeded(f"not done in {self.deadline - self.meter.started:.3g} s")

    def waited(self) -> None:
        """Counts the time since ``since`` as waiting."""
        self.meter.add("queue", time.perf_counter() - self.since)

    def cancel(self) -> None:
        """Cancels what the engine does for it."""
        for handle in list(self.handles):
            handle.cancel()

    def forget(self) -> None:
        """Lets go of what it does not need after its end."""
        self.steps, self.round, self.features, self.handles = None, None, [], []

    def begin(self) -> Round:
        """Takes the first step; StopIteration has the results if there is nothing to ask."""
        self.steps = self.make_steps(self.features)
        return next(self.steps)

    @property
    def limit(self) -> float:
        """Time at which the engine is to give up its present round."""
        assert self.round is not None
        return self.deadline if self.round.draft is None else min(self.deadline, self.budget)

    def is_cut(self, error: BaseException | None) -> bool:
        """Whether an error of a prompt is that its budget was spent."""
        late = isinstance(error, DeadlineExceeded)
        return late and self.limit == self.budget < self.deadline

    def outputs(self) -> list[Output | None]:
        """Outputs of its round, with None for those that the budget has cut.

        Raises:
            RetrvError: the engine was closed meanwhile; all other errors are the engine's own.
        """
        assert self.round is not None
        futures = [handle.future for handle in self.handles]
        errors = [None if future.cancelled() else future.exception() for future in futures]
        for error in errors:
            if error is not None and not self.is_cut(error):
                raise error
        if any(future.cancelled() for future in futures):
            raise RetrvError(CLOSED)
        for error, prepared in zip(errors, self.round.prepared, strict=True):
            if isinstance(error, DeadlineExceeded) and error.spent is not None:
                self.meter.cut(prepared, error.spent)
        pairs = zip(futures, errors, strict=True)
        return [future.result() if error is None else None for future, error in pairs]
