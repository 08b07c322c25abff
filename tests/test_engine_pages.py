"""Rows and pages: the radix tree against a dictionary of everything that was ever put into it, the
keys of rows, and which pages sequences share."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from retrv_engine import FeatureRows
from retrv_engine.context import Context
from retrv_engine.pages import PagePool, pages_of
from retrv_engine.prefix import shared_prefix_length
from retrv_engine.radix import RadixTree
from retrv_engine.sharing import Sharing

SIZE, PAGES = 3, 24


class Held:
    """A sequence: its keys, its pages, and the nodes that it holds."""

    def __init__(self, keys: list[int]) -> None:
        self.keys, self.pages, self.nodes = keys, [], []


class TreeMachine(RuleBasedStateMachine):
    """Sequences begin with what is cached, grow, are stored, and end, in any order.

    The model is a dictionary from page to the rows that were written into it, each with all rows
    before it: whatever the tree matches must hold just the rows that were asked for.
    """

    sequences = Bundle("sequences")

    def __init__(self) -> None:
        super().__init__()
        self.tree, self.pool = RadixTree(SIZE), PagePool(PAGES, SIZE)
        self.rows: dict[tuple[int, int], tuple[int, ...]] = {}
        self.held: list[Held] = []

    def take(self, count: int) -> bool:
        if len(self.pool) < count:
            self.pool.give(self.tree.evict(count - len(self.pool)))
        return len(self.pool) >= count

    def write(self, held: Held, first: int) -> bool:
        """Rows from ``first`` on; False if there is no room."""
        need = pages_of(len(held.keys), SIZE) - len(held.pages)
        if not self.take(need):
            return False
        held.pages += [self.pool.take() for _ in range(need)]
        for row in range(first, len(held.keys)):
            self.rows[held.pages[row // SIZE], row % SIZE] = tuple(held.keys[: row + 1])
        return True

    @rule(target=sequences, keys=st.lists(st.integers(0, 2), min_size=1, max_size=14))
    def begin(self, keys):
        match = self.tree.match(keys, len(keys) - 1)
        held = Held(keys)
        expected = [self.rows[node.page, i] for node in match.nodes for i in range(SIZE)]
        if match.partial is not None:
            expected += [self.rows[match.partial.page, i] for i in range(match.rest)]
        assert expected == [tuple(keys[: i + 1]) for i in range(match.rows)]
        assert match.rows == self.longest(keys[:-1])
        self.tree.lock(match.nodes)
        held.nodes, held.pages = list(match.nodes), [node.page for node in match.nodes]
        if not self.write(held, len(match.nodes) * SIZE):
            self.tree.unlock(held.nodes)
            self.pool.give(held.pages[len(held.nodes) :])
            held.keys, held.pages, held.nodes = [], [], []
        self.held.append(held)
        return held

    @rule(held=sequences, keys=st.lists(st.integers(0, 2), min_size=1, max_size=5))
    def grow(self, held, keys):
        before = list(held.keys)
        if before:
            held.keys = before + keys
            if not self.write(held, len(before)):
                held.keys = before

    @rule(held=sequences)
    def store(self, held):
        self.pool.give(self.tree.insert(held.keys, held.pages, held.nodes))

    @rule(held=consumes(sequences), keep=st.booleans())
    def end(self, held, keep):
        if keep:
            self.store(held)
        self.tree.unlock(held.nodes)
        self.pool.give(held.pages[len(held.nodes) :])
        self.held.remove(held)

    @rule(pages=st.integers(1, PAGES))
    def evict(self, pages):
        could = self.tree.evictable
        freed = self.tree.evict(pages)
        assert len(freed) == min(pages, could)
        self.pool.give(freed)

    def longest(self, keys: list[int]) -> int:
        """The most rows that any path of the tree shares with ``keys``."""
        best = 0
        for node in self.tree:
            path, above = list(node.keys), node.parent
            while above is not self.tree.root:
                path, above = [*above.keys, *path], above.parent
            best = max(best, shared_prefix_length(path, keys))
        return best

    @invariant()
    def sound(self):
        self.tree.check()
        own = [page for held in self.held for page in held.pages[len(held.nodes) :]]
        self.pool.check([*own, *(node.page for node in self.tree)])
        for held in self.held:
            kept = [self.rows[held.pages[i // SIZE], i % SIZE] for i in range(len(held.keys))]
            assert kept == [tuple(held.keys[: i + 1]) for i in range(len(held.keys))]


TestTree = TreeMachine.TestCase
TestTree.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def filled(*sequences: list[int]) -> tuple[RadixTree, PagePool]:
    """A tree in which sequences were stored and let go, the first one longest ago."""
    tree, pool = RadixTree(SIZE), PagePool(PAGES, SIZE)
    for keys in sequences:
        nodes = tree.match(keys, len(keys)).nodes
        tree.lock(nodes)
        pages = [node.page for node in nodes]
        pages += [pool.take() for _ in range(pages_of(len(keys), SIZE) - len(pages))]
        pool.give(tree.insert(keys, pages, nodes))
        tree.unlock(nodes)
        pool.give(pages[len(nodes) :])
    return tree, pool


def test_what_was_used_last_is_evicted_last():
    tree, _ = filled([1] * 6, [2] * 6, [3] * 3)
    tree.match([1] * 6, 6)  # a match is a use
    left = []
    while tree.size:
        tree.evict(1)
        left.append(sorted(node.keys[0] for node in tree))
    # The end of a sequence is evicted before its beginning.
    assert left == [[1, 1, 2, 3], [1, 1, 3], [1, 1], [1], []]


def test_locked_pages_are_never_evicted():
    tree, _ = filled([1] * 6, [2] * 3)
    nodes = tree.match([1] * 6, 6).nodes
    tree.lock(nodes)
    assert len(tree.evict(99)) == 1
    assert tree.match([1] * 6, 6).rows == 6
    with pytest.raises(AssertionError):
        tree.flush()
    tree.unlock(nodes)
    assert sorted(tree.flush()) == sorted(node.page for node in nodes)
    assert tree.match([1] * 6, 6).rows == 0


def test_rows_of_a_page_that_is_not_full_are_found():
    tree, _ = filled([1, 2, 3, 4, 5])
    match = tree.match([1, 2, 3, 4, 9, 9], 6)
    assert (match.rows, match.rest, len(match.nodes)) == (4, 1, 1)
    assert tree.match([1, 2, 3, 4, 5], 4).rows == 4, "a limit cuts pages"
    assert tree.match([1, 2, 3], 2).rows == 2


def test_a_page_that_others_have_already_is_given_back():
    tree, pool = filled([1, 2, 3])
    before = len(pool)
    pages, nodes = [pool.take()], []
    own = pages[0]
    assert tree.insert([1, 2, 3], pages, nodes) == [own]
    assert pages == [nodes[0].page] != [own] and nodes[0].users == 1
    pool.give([own])
    assert len(pool) == before


@pytest.mark.parametrize("count, size", [(0, 1), (1, 0), (-3, 4)])
def test_pools_without_pages_are_refused(count, size):
    with pytest.raises(ValueError, match="a cache needs pages"):
        PagePool(count, size)


def test_common_beginnings():
    for length in (0, 1, 63, 64, 65, 200):
        a = list(range(length))
        assert shared_prefix_length(a, a) == shared_prefix_length(a, [*a, 1]) == length
        for at in range(0, length, 17):
            assert shared_prefix_length(a, [*a[:at], -1, *a[at + 1 :]]) == at


def test_rows_in_a_grid_are_not_those_in_a_line():
    """Their positions differ, so that their keys and values do."""
    contexts = [Context() for _ in range(2)]
    for context, width in zip(contexts, (0, 4), strict=True):
        context.extend([FeatureRows(torch.zeros(12, 1), 0, 12, 77, width)])
    assert not set(contexts[0].keys) & set(contexts[1].keys)


def test_pieces_are_cut_anywhere():
    context, table = Context(), torch.zeros(20, 1)
    context.extend([5, FeatureRows(table, 3, 12, 99, 4), 6, FeatureRows(table, 15, 3, 7)])
    assert len(context) == 17 and context.position == 1 + 4 + 1 + 3
    for first in range(17):
        for stop in range(first + 1, 18):
            rows = []
            for piece in context.placed(first, stop):
                at = piece.row if piece.table is None else 100 + piece.row
                rows += [at] * piece.length if piece.table is None else range(at, at + piece.length)
            assert rows == [5, *range(103, 115), 6, *range(115, 118)][first:stop]
    assert len(set(context.keys)) == 17 and context.keys[0] == 5 and context.keys[13] == 6
    assert all(key < 0 for key in context.keys[1:13])


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
