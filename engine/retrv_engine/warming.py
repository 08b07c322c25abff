"""Made-up requests, so that what real ones launch is compiled and captured before they come."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace

from retrv_engine.request import Piece, Request, Sampling, Vocabulary

ROWS = 24  # of a prompt: enough for a prefill's tile, and a page or two
TOKENS = 4  # a step runs eagerly first, is captured the second time, and replayed the third


class _Nothing:
    """A feature source that is never asked."""

    def load(self, names: Sequence[Hashable]) -> Sequence[Sequence[Piece]]:
        raise AssertionError("these requests inspect nothing")


def batches(
    vocabulary: Vocabulary, samplings: Sequence[Sampling], sizes: Sequence[int]
) -> Iterator[list[Request]]:
    """Requests to run together: of each size, with tokens taken in each of some ways."""
    special = vars(vocabulary).values()
    label = next(token for token in itertools.count() if token not in special)
    banned = [vocabulary.think_end, vocabulary.inspect_start]
    for sampling in samplings:
        short = replace(sampling, max_reasoning_tokens=TOKENS, max_inspections=0)
        request = Request([label] * ROWS, [label], [0], _Nothing(), True, short, banned)
        for size in sizes:
            yield [request] * size
