"""Log-probabilities of given tokens: one pass, nothing is written."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from retrv_engine.request import FeatureSource, Piece
from retrv_engine.sampler import Choice, Picked, check_numbers


class Scoring:
    """A scoring request as the scheduler sees it; stands where a ``Generation`` does."""

    def __init__(self, prompt: Sequence[Piece], tokens: Sequence[int]) -> None:
        if not prompt or not tokens:
            raise ValueError("scoring needs a prompt and at least one token")
        self.tokens: list[int] = []
        self.inspecting: tuple[FeatureSource, Hashable] | None = None
        self.due = len(tokens)
        self._pending: list[Piece] = [*prompt, *tokens[:-1]]
        self._scored = list(tokens)
        self._logprobs: list[float] | None = None

    @property
    def done(self) -> bool:
        return self._logprobs is not None

    def take_pending(self) -> list[Piece]:
        """The pieces to feed, once."""
        pieces, self._pending = self._pending, []
        return pieces

    def choice(self, number: int) -> Choice:
        """Token ``number`` of those that are scored, from the row before it."""
        return Choice(target=self._scored[number])

    def advance(self, picks: Sequence[Picked]) -> None:
        """Takes the tokens' log-probabilities; raises as a sequence does."""
        check_numbers(picks)
        self._logprobs = [pick.logprob for pick in picks]

    def splice(self, pieces: Sequence[Piece]) -> None:
        raise AssertionError("scoring inspects nothing")

    def output(self) -> list[float]:
        """Log-probability of each token."""
        assert self._logprobs is not None
        return self._logprobs
