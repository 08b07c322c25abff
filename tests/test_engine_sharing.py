"""Which sequences share pages."""

from __future__ import annotations

import random

import pytest

from retrv_engine.pages import pages_of
from retrv_engine.sharing import Sharing


@pytest.mark.parametrize("seed", range(20))
def test_sharing_is_found_once_and_grows_with_its_sequences(seed):
    """Nodes cover each sequence's pages in order, as looking at all of them again would."""
    rng, size = random.Random(seed), 4
    numbers = iter(rng.sample(range(1000), 1000))
    trunk = [next(numbers) for _ in range(rng.randint(0, 5))]
    pages = []
    for _ in range(rng.randint(1, 6)):
        shared = trunk[: rng.randint(0, len(trunk))] if trunk else []
        pages.append([*shared, *(next(numbers) for _ in range(rng.randint(1, 3)))])
    lengths = [size * len(own) - rng.randint(0, size - 1) for own in pages]
    sharing = Sharing.of(pages, lengths, size)
    for _ in range(9):
        ordered = [lengths[i] for i in sharing.order]
        nodes = sharing.nodes(ordered, size)
        for place, i in enumerate(sharing.order):
            over = [node for node in nodes if node.first <= place < node.stop]
            assert sum(node.length for node in over) == lengths[i]
            assert [p for node in over for p in node.pages] == pages[i]
        assert sharing.nodes(ordered, size) == Sharing.of(pages, lengths, size).nodes(ordered, size)
        grows = rng.randrange(len(pages))
        lengths[grows] += 1
        if pages_of(lengths[grows], size) > len(pages[grows]):
            pages[grows].append(next(numbers))
        assert sharing.holds(pages)
    assert not sharing.holds([*pages[:-1], list(pages[-1])]), "an equal list is another's"
    assert not sharing.holds(pages[:-1])
