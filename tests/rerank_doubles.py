"""What tests of rankings share: lists, checks, and a record of what an engine was asked."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement

import pytest

from retrv_engine import Output, Request, Sampling
from retrv_r1 import RankedItem, RankedResults, Reranker

SHORT = Sampling(max_reasoning_tokens=12)


class Record:
    """The requests that a reranker's engine gets from now on, and its outputs."""

    def __init__(self, reranker: Reranker) -> None:
        self.requests: list[Request] = []
        self.outputs: list[Output] = []
        self._generate = reranker.engine.generate
        vars(reranker.engine)["generate"] = self.generate

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        outputs = self._generate(requests)
        self.requests += requests
        self.outputs += outputs
        return outputs


def never_ending(reranker: Reranker) -> Reranker:
    """Has a reranker reason until it is cut; by itself, even a random model ends some day."""
    reranker.builder._structure.append(reranker.processor.tokens.think_end)
    return reranker


def distinct_texts(count: int) -> list[str]:
    """Texts of two letters in order: pooling has no positions, "b a" compresses as "a b" does."""
    letters = [chr(ord("A") + n) for n in range(32)]
    return [f"{a} {b}" for a, b in combinations_with_replacement(letters, 2)][:count]


def check(result: RankedResults, count: int) -> None:
    """What holds of every ranking."""
    assert sorted(line.index for line in result) == list(range(count))
    scores = [line.score for line in result]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert result.answer == result[0].index
    assert {line.index for line in result if line.inspected} == set(result.inspected)


def same(found: Sequence[RankedItem], expected: Sequence[RankedItem]) -> None:
    """The same ranking; what a cache gives may differ by rounding."""
    assert [line.index for line in found] == [line.index for line in expected]
    scores = [line.score for line in expected]
    assert [line.score for line in found] == pytest.approx(scores, abs=1e-6)
