"""The radix tree: which rows are in the cache, and in which pages.

A node is one page. Its keys describe its rows: the id of a token, or a hash of a feature row. The
path from the root holds all rows before them, so equal paths mean equal keys and values in the
cache. Only full pages have children. A page that is not full is matched row by row, and the rows
that match are copied.

    root ─ [system, instruction, query …] ─ [… query, candidates] ─ [… candidates, task]
                                          └ [… query, other candidates] …
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from retrv_engine.pages import pages_of
from retrv_engine.prefix import shared_prefix_length

Keys = tuple[int, ...]


class Node:
    """A page of rows.

    Attributes:
        keys: keys of its rows, in order.
        page: number of the page.
        users: number of jobs that lock the page.
        used: time of the last match or unlock, as a count.
    """

    __slots__ = ("children", "keys", "listed", "order", "page", "parent", "used", "users")

    def __init__(self, keys: Keys, page: int, parent: Node | None) -> None:
        self.keys, self.page, self.parent = keys, page, parent
        self.users = self.used = 0
        self.listed = False  # for eviction
        self.children: dict[Keys, Node] = {}
        self.order: list[Keys] = []  # the children's keys, sorted: neighbours share the most

    def add(self, child: Node) -> None:
        child.parent = self
        self.children[child.keys] = child
        insort(self.order, child.keys)

    def remove(self, child: Node) -> None:
        del self.children[child.keys]
        del self.order[bisect_left(self.order, child.keys)]

    def nearest(self, keys: Keys) -> tuple[Node | None, int]:
        """The child that shares the longest prefix with ``keys``, and its length."""
        place = bisect_left(self.order, keys)
        best, most = None, 0
        for other in self.order[max(0, place - 1) : place + 1]:
            shared = shared_prefix_length(other, keys)
            if shared > most:
                best, most = self.children[other], shared
        return best, most


@dataclass(frozen=True)
class Match:
    """The longest cached prefix of a job's rows.

    Attributes:
        nodes: nodes of whole pages, in order.
        partial: node whose first ``rest`` rows come next, to be copied; None if there are none.
        rows: number of rows in all.
    """

    nodes: list[Node] = field(default_factory=list)
    partial: Node | None = None
    rest: int = 0
    rows: int = 0


class RadixTree:
    """Cached pages by their content; not thread-safe.

    Args:
        page_size: number of rows of a page.

    Attributes:
        size: number of pages.
        evictable: number of pages that nobody locks.
        evicted: number of pages that were evicted so far.
    """

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.root = Node((), -1, None)
        self.size = 0
        self.evictable = 0
        self.evicted = 0
        self._clock = count(1)
        self._ticket = count()
        # A heap by time of use. Entries may be out of date, which ``evict`` notices.
        self._leaves: list[tuple[int, int, Node]] = []

    def match(self, keys: Sequence[int], limit: int) -> Match:
        """The longest cached prefix of ``keys``, at most ``limit`` rows."""
        nodes: list[Node] = []
        node, start, now = self.root, 0, next(self._clock)
        while start < limit:
            chunk = tuple(keys[start : min(start + self.page_size, limit)])
            child, shared = node.nearest(chunk)
            if child is None:
                break
            child.used = now
            if shared < self.page_size:
                return Match(nodes, child, shared, start + shared)
            nodes.append(child)
            node, start = child, start + shared
        return Match(nodes, None, 0, start)

    def lock(self, nodes: Sequence[Node]) -> None:
        """Locks pages: they are not evicted until they were unlocked as often."""
        for node in nodes:
            self.evictable -= node.users == 0
            node.users += 1

    def unlock(self, nodes: Sequence[Node]) -> None:
        """Unlocks pages. They stay cached until their space is needed."""
        now = next(self._clock)
        for node in nodes:
            assert node.users > 0
            node.users -= 1
            node.used = now
            self.evictable += node.users == 0
            self._list(node)

    def insert(self, keys: Sequence[int], pages: list[int], nodes: list[Node]) -> list[int]:
        """Adds a job's pages to the tree, and locks them for the job.

        Args:
            keys: keys of all rows of the job that are in the cache.
            pages: pages of the job, changed in place. If another page holds the same rows already,
                it replaces the job's own, which is returned.
            nodes: locked nodes of the first pages; those of further pages are appended. A last page
                that is not full gets a node too: its job goes on writing after the rows that the
                node has, and other jobs copy those.

        Returns:
            Pages that are no longer needed.
        """
        spare: list[int] = []
        size = self.page_size
        grows = bool(nodes) and len(nodes[-1].keys) < size
        for i in range(len(nodes) - grows, pages_of(len(keys), size)):
            chunk = tuple(keys[i * size : (i + 1) * size])
            parent = nodes[i - 1] if i else self.root
            own = nodes[i] if i < len(nodes) else None
            twin = parent.children.get(chunk)
            if twin is not None and twin is own:
                break
            if len(chunk) < size and parent.nearest(chunk)[1] == len(chunk):
                break  # another page has these rows, and another job writes to it
            if own is not None:
                parent.remove(own)
                if twin is None:
                    own.keys = chunk
                    parent.add(own)
                    continue
                self.size -= 1  # a page that is not full is locked by its own job only
                nodes.pop()
            if twin is not None:
                spare.append(pages[i])
                pages[i] = twin.page
            else:
                twin = Node(chunk, pages[i], parent)
                parent.add(twin)
                self.size += 1
                self.evictable += 1
            self.lock([twin])
            nodes.append(twin)
        return spare

    def evict(self, pages: int) -> list[int]:
        """Evicts so many unlocked pages, or all of them, least recently used first."""
        freed: list[int] = []
        while len(freed) < pages and self._leaves:
            used, _, node = heapq.heappop(self._leaves)
            node.listed = False
            if node.used != used:
                self._list(node)
            elif node.parent is not None and not node.users and not node.children:
                node.parent.remove(node)
                freed.append(node.page)
                self._list(node.parent)
                node.parent = None
        self.size -= len(freed)
        self.evictable -= len(freed)
        self.evicted += len(freed)
        return freed

    def flush(self) -> list[int]:
        """Evicts all pages; none may be locked."""
        assert self.evictable == self.size, "a page is locked"
        pages = [node.page for node in self]
        for node in list(self):
            node.parent = None
        self.root = Node((), -1, None)
        self.size = self.evictable = 0
        self._leaves.clear()
        return pages

    def __iter__(self) -> Iterator[Node]:
        waiting = list(self.root.children.values())
        while waiting:
            node = waiting.pop()
            waiting.extend(node.children.values())
            yield node

    def check(self) -> None:
        """Raises AssertionError unless all invariants hold."""
        nodes = list(self)
        listed = {id(node) for _, _, node in self._leaves}
        assert len(nodes) == self.size
        assert sum(node.users == 0 for node in nodes) == self.evictable
        for node in (self.root, *nodes):
            assert node.order == sorted(node.children)
            assert all(child.keys == keys for keys, child in node.children.items())
            assert all(child.parent is node for child in node.children.values())
            assert not node.children or node is self.root or len(node.keys) == self.page_size
        for node in nodes:
            assert 0 < len(node.keys) <= self.page_size and node.users >= 0
            assert node.parent is not None
            assert node.parent is self.root or node.parent.users >= node.users
            assert node.listed == (id(node) in listed)
            assert node.users or node.children or node.listed, "a leaf cannot be evicted"

    def _list(self, node: Node) -> None:
        """Lists a node for eviction if it is an unlocked leaf."""
        if node.parent is None or node.users or node.children or node.listed:
            return
        node.listed = True
        heapq.heappush(self._leaves, (node.used, next(self._ticket), node))
