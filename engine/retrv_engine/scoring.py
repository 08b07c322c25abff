"""Log-probabilities of given tokens: one pass, nothing is written."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from retrv_engine.request import FeatureSource, Piece


class Scoring:
    """What the scheduler sees of a scoring request; as :class:`retrv_engine.sequence.Sequence`."""

    def __init__(self, prompt: Sequence[Piece], tokens: Sequence[int]) -> None:
        if not prompt or not tokens:
            raise ValueError("scoring needs a prompt and at least one token")
        self.tokens: list[int] = []
        self.wanted: tuple[FeatureSource, Hashable] | None = None
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

    def advance(self, logits: Tensor) -> None:
        """Takes ``logits [tokens, vocabulary]`` of the rows before the tokens."""
        logprobs = torch.log_softmax(logits.float(), -1)
        chosen = torch.tensor(self._scored, device=logits.device)[:, None]
        self._logprobs = logprobs.gather(1, chosen)[:, 0].tolist()

    def splice(self, pieces: Sequence[Piece]) -> None:
        raise AssertionError("scoring inspects nothing")

    def output(self) -> list[float]:
        """Log-probability of each token."""
        assert self._logprobs is not None
        return self._logprobs
