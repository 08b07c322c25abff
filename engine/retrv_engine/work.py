"""What a job of the local engine can be: a generation, or the scoring of given tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from retrv_engine.request import Candidate, Piece
from retrv_engine.sampler import Choice, Picked, check_numbers


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
