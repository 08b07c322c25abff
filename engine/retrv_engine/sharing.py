"""Which pages the sequences of a step share, so that attention reads each of them once."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from retrv_engine.pages import pages_of
from retrv_engine.prefix import shared_prefix_length

SHARED_ROWS = {"cpu": 1, "cuda": 2**17}
"""Fewest cached rows that a step must save by reading shared prefixes once, by device. The number
for GPUs is an estimate, not measured: rows that fit a GPU's cache are read from memory once anyway.
"""


class PrefixNode(NamedTuple):
    """Consecutive pages, ``length`` rows in all, that sequences ``first`` to ``stop`` share."""

    pages: Sequence[int]
    length: int
    first: int
    stop: int


def tree_of(
    pages: Sequence[Sequence[int]], lengths: Sequence[int], page_size: int
) -> list[PrefixNode]:
    """Nodes of the tree that sorted page lists form; each sequence ends in a page of its own."""
    nodes: list[PrefixNode] = []

    def divide(first: int, stop: int, depth: int) -> None:
        if stop - first == 1:
            length = lengths[first] - depth * page_size
            nodes.append(PrefixNode(pages[first][depth:], length, first, stop))
            return
        # Sorted: pages that the first and the last share, all share.
        shared = shared_prefix_length(pages[first], pages[stop - 1])
        if shared > depth:
            length = (shared - depth) * page_size
            nodes.append(PrefixNode(pages[first][depth:shared], length, first, stop))
        start = first
        for i in range(first + 1, stop + 1):
            if i == stop or pages[i][shared] != pages[start][shared]:
                divide(start, i, shared)
                start = i

    if pages:
        divide(0, len(pages), 0)
    return nodes


def is_worth_a_tree(nodes: Sequence[PrefixNode], device: torch.device) -> bool:
    """Whether enough rows are shared for shared_prefix_attention."""
    saved = sum(node.length * (node.stop - node.first - 1) for node in nodes)
    return saved >= SHARED_ROWS.get(device.type, SHARED_ROWS["cuda"])


@dataclass(frozen=True)
class Sharing:
    """How decoding sequences share their pages; valid until one joins or leaves.

    While a sequence decodes, its list of pages only grows, by pages of its own.

    Attributes:
        pages: lists of pages themselves, in the order of the step.
        order: order of the sequences in which those that share pages are neighbours.
        inner: nodes that several sequences share.
        depths: number of pages of each sequence in inner nodes, in ``order``.
    """

    pages: Sequence[list[int]]
    order: Sequence[int]
    inner: Sequence[PrefixNode]
    depths: Sequence[int]

    @classmethod
    def of(cls, pages: Sequence[list[int]], lengths: Sequence[int], page_size: int) -> Sharing:
        """Compares the pages of all sequences."""
        order = sorted(range(len(pages)), key=pages.__getitem__)
        stops = [lengths[i] for i in order]
        used = [pages[i][: pages_of(lengths[i], page_size)] for i in order]
        nodes = tree_of(used, stops, page_size)
        inner = [node for node in nodes if node.stop - node.first > 1]
        own = {node.first: node.length for node in nodes if node.stop - node.first == 1}
        depths = [(stop - own[i]) // page_size for i, stop in enumerate(stops)]
        return cls(pages, order, inner, depths)

    def holds(self, pages: Sequence[list[int]]) -> bool:
        """Whether these are the same lists."""
        return len(pages) == len(self.pages) and all(map(operator.is_, pages, self.pages))

    def nodes(self, lengths: Sequence[int], page_size: int) -> list[PrefixNode]:
        """All nodes, for sequences of ``lengths`` rows, in ``order``."""
        own = [
            PrefixNode(
                self.pages[i][depth : pages_of(length, page_size)],
                length - depth * page_size,
                place,
                place + 1,
            )
            for place, (i, depth, length) in enumerate(
                zip(self.order, self.depths, lengths, strict=True)
            )
        ]
        return [*self.inner, *own]
