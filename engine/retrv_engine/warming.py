"""Made-up requests, so that what real ones launch is compiled and captured before they come."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import replace

from retrv_engine.request import Piece, Request, Sampling, Vocabulary

SHORT = 24  # rows of a prompt that is read by one program a head
LONG = 300  # … and by several, whose parts are merged
TOKENS = 4  # a step runs eagerly first, is captured the second time, and replayed the third


class _Nothing:
    """A feature source that is never asked."""

    def load(self, names: Sequence[Hashable]) -> Sequence[Sequence[Piece]]:
        raise AssertionError("these requests inspect nothing")


class Prompts:
    """Requests of words that mean nothing.

    Args:
        sampling: how tokens are taken.
    """

    def __init__(self, vocabulary: Vocabulary, sampling: Sampling) -> None:
        special = vars(vocabulary).values()
        words = (token for token in itertools.count() if token not in special)
        self.label, self.word, self.other = itertools.islice(words, 3)
        self.banned = [vocabulary.think_end, vocabulary.inspect_start]
        self.sampling = replace(sampling, max_reasoning_tokens=TOKENS, max_inspections=0)

    def of(self, rows: int, tokens: int = TOKENS, *, other: bool = False) -> Request:
        """A prompt of so many rows, all of them one word or another."""
        prompt = [self.other if other else self.word] * rows
        sampling = replace(self.sampling, max_reasoning_tokens=tokens)
        return Request(prompt, [self.label], [0], _Nothing(), True, sampling, self.banned)
