"""Fixtures of the tests of rankings: two rerankers, and items of all kinds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from rerank_doubles import never_ending

from retrv_r1 import Item, Reranker


@pytest.fixture
def reranker(checkpoint) -> Iterator[Reranker]:
    """It tends to inspect, and to answer."""
    model, processor, _ = checkpoint
    with Reranker(model, processor, name="leaning") as made:
        yield made


@pytest.fixture
def endless(model, processor) -> Iterator[Reranker]:
    """It never ends its reasoning itself."""
    with Reranker(model, processor) as made:
        yield never_ending(made)


@pytest.fixture(scope="module")
def mixed(picture) -> list[Item]:
    texts = ["a red apple", "a blue bird", "high in the sky", "find"]
    return [
        *(Item(text=text) for text in texts),
        *(Item(image=picture(n, 64 if n % 2 else 48, 48)) for n in range(4)),
        Item(text="a red apple", image=picture(9, 32, 64)),
    ]
