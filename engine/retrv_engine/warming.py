"""Made-up requests that compile and capture what real ones launch, before those come."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import replace

from retrv_engine import decode
from retrv_engine.base import Engine
from retrv_engine.request import Piece, Request, Sampling, Vocabulary

SHORT = 24  # rows of a prompt that one program of a head reads
LONG = 300  # rows of a prompt that several programs read, whose parts are merged
TOKENS = 4  # a step runs eagerly first, is captured the second time, and replayed the third


def run(
    engine: Engine,
    vocabulary: Vocabulary,
    samplings: Sequence[Sampling],
    sizes: Sequence[int],
    rows: int,
    most: int,
) -> None:
    """Runs requests of all kinds through an engine; see ``LocalEngine.warm``.

    Args:
        most: rows of the longest prompt that fits.
    """
    lengths = [SHORT, *(tier + 1 for tier in decode.tiers(rows) if tier < rows)]
    for sampling in samplings:
        prompts = _Prompts(vocabulary, sampling)
        for size, length in itertools.product(sizes, lengths):
            engine.generate([prompts.of(min(length, most))] * size)
        # Two that decode, and share a prompt, while another is prefilled.
        long = min(LONG, most)
        handles = [engine.submit(prompts.of(long, 9)) for _ in range(2)]
        for handle in handles:
            next(handle.tokens())  # its prompt is prefilled
        engine.generate([prompts.of(long, other=True)])
        for handle in handles:
            handle.result()
        engine.flush()


class _Nothing:
    """A feature source that is never asked."""

    def load(self, names: Sequence[Hashable]) -> Sequence[Sequence[Piece]]:
        raise AssertionError("these requests inspect nothing")


class _Prompts:
    """Makes requests out of three tokens that mean nothing.

    Args:
        sampling: temperature and top_p of the requests.
    """

    def __init__(self, vocabulary: Vocabulary, sampling: Sampling) -> None:
        special = vars(vocabulary).values()
        words = (token for token in itertools.count() if token not in special)
        self.label, self.word, self.other = itertools.islice(words, 3)
        self.banned = [vocabulary.think_end, vocabulary.inspect_start]
        self.sampling = replace(sampling, max_reasoning_tokens=TOKENS, max_inspections=0)

    def of(self, rows: int, tokens: int = TOKENS, *, other: bool = False) -> Request:
        """A request whose prompt is one token, ``rows`` times."""
        prompt = [self.other if other else self.word] * rows
        sampling = replace(self.sampling, max_reasoning_tokens=tokens)
        return Request(prompt, [self.label], [0], _Nothing(), True, sampling, self.banned)
