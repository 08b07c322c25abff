"""A request on its way through the local engine: its work, its rows, those of one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from retrv_engine.base import Handle
from retrv_engine.context import Context
from retrv_engine.generation import Generation
from retrv_engine.radix import Node
from retrv_engine.request import Candidate, Piece, Spent
from retrv_engine.sampler import Choice, Picked, check_numbers

Phase = Literal["prefill", "decode", "inspection"]


class Work(Protocol):
    """What the scheduler and the runner need of a running request.

    Attributes:
        tokens: tokens written so far.
        due: number of its last rows from whose logits a token is taken.
    """

    tokens: list[int]
    due: int

    @property
    def done(self) -> bool: ...

    def take_pending(self) -> list[Piece]:
        """Returns the pieces to compute next, once."""
        ...

    def choice(self, number: int) -> Choice:
        """How a token is taken from row ``number`` of those that are due."""
        ...

    def advance(self, picks: Sequence[Picked]) -> Candidate | None:
        """Takes the tokens from the due rows; returns the candidate that it inspects next, if any.

        Raises:
            FloatingPointError: the model's logits are NaN.
        """
        ...

    def output(self) -> Any:
        """Result, when done."""
        ...


class Scoring:
    """Log-probabilities of given tokens: one pass, and nothing is written."""

    def __init__(self, prompt: Sequence[Piece], tokens: Sequence[int]) -> None:
        if not prompt or not tokens:
            raise ValueError("scoring needs a prompt and at least one token")
        self.tokens: list[int] = []
        self.due = len(tokens)
        self._pending: list[Piece] = [*prompt, *tokens[:-1]]
        self._scored = list(tokens)
        self._logprobs: list[float] | None = None

    @property
    def done(self) -> bool:
        return self._logprobs is not None

    def take_pending(self) -> list[Piece]:
        """See :meth:`Work.take_pending`."""
        pieces, self._pending = self._pending, []
        return pieces

    def choice(self, number: int) -> Choice:
        """Scored token ``number``, taken whatever its logit is."""
        return Choice(target=self._scored[number])

    def advance(self, picks: Sequence[Picked]) -> None:
        """Keeps the tokens' log-probabilities; see :meth:`Work.advance`."""
        check_numbers(picks)
        self._logprobs = [pick.logprob for pick in picks]

    def output(self) -> list[float]:
        """Log-probability of each token."""
        assert self._logprobs is not None
        return self._logprobs


@dataclass(eq=False)
class Job:
    """A request on its way through the engine.

    The scheduler alone changes ``pages``, ``nodes``, ``cached``, ``picks``, ``found`` and
    ``computed``.

    Attributes:
        work: the generation or scoring itself.
        number: place in the order of arrival.
        submitted: time of arrival, in seconds of ``time.perf_counter``.
        priority: jobs of higher priority go first.
        deadline: time after which the job is given up, or None.
        context: all rows, computed or still to compute.
        pages: pages of the computed rows, in order.
        nodes: nodes of the radix tree for the first pages; the other pages are the job's alone.
        cached: number of rows whose keys and values are in the pages.
        phase: what the next rows are: the prompt, written tokens, or an inspected candidate.
        picks: tokens taken so far from the rows that are due.
        found: rows found in the cache.
        computed: rows that went through the model.
        reported: number of tokens handed to the handle.
        timings: seconds of the steps that the job took part in, by phase.
    """

    work: Work
    handle: Handle
    number: int
    submitted: float
    priority: int = 0
    deadline: float | None = None
    context: Context = field(default_factory=Context)
    pages: list[int] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    cached: int = 0
    phase: Phase = "prefill"
    picks: list[Picked] = field(default_factory=list)
    found: int = 0
    computed: int = 0
    reported: int = 0
    timings: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.context.extend(self.work.take_pending())

    @property
    def order(self) -> tuple[int, int]:
        """Sort key of the priority order: the smallest goes first."""
        return -self.priority, self.number

    @property
    def left(self) -> int:
        """Number of rows still to compute."""
        return len(self.context) - self.cached

    @property
    def logits_from(self) -> int:
        """First row whose logits are needed."""
        return len(self.context) - self.work.due

    @property
    def spent(self) -> Spent | None:
        """What a generation has used so far; None for another kind of work."""
        work = self.work
        if not isinstance(work, Generation):
            return None
        return Spent(
            len(work.tokens),
            tuple(work.inspected),
            work.inspected_rows,
            self.found,
            self.computed,
            dict(self.timings),
        )

    def advance(self) -> Candidate | None:
        """Gives the picks to the work and new tokens to the handle; see :meth:`Work.advance`."""
        inspected = self.work.advance(self.picks)
        self.picks.clear()
        self.context.extend(self.work.take_pending())
        self.handle.add(self.work.tokens[self.reported :])
        self.reported = len(self.work.tokens)
        return inspected

    def splice(self, pieces: Sequence[Piece]) -> None:
        """Appends the rows of the inspected candidate."""
        assert isinstance(self.work, Generation), "nothing else inspects"
        self.work.splice(pieces)
        self.context.extend(self.work.take_pending())
        self.phase = "inspection"


class Extend(NamedTuple):
    """Rows ``first`` to ``stop`` of a job's context, which one step computes."""

    job: Job
    first: int
    stop: int

    @property
    def due(self) -> int:
        """Number of the last rows from whose logits a token is taken."""
        return max(0, self.stop - max(self.first, self.job.logits_from))

    def choices(self) -> list[Choice]:
        """How those tokens are taken; to be called once, when the rows are computed."""
        first = self.stop - self.due - self.job.logits_from
        return [self.job.work.choice(first + i) for i in range(self.due)]
