"""The decode step: every running sequence computes one token.

    fill → compute → take

``fill`` writes the inputs of the step into one buffer and copies it to the device at once.
``compute`` runs model and sampler over tensors with fixed addresses. ``take`` waits once, for all
results. ``compute`` reads nothing from the host, and only its results outlive it. So a CUDA graph
can replay it, which removes Python from the step. On a CPU the same code runs eagerly.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from retrv_engine.batch import Batch, PagedCache
from retrv_engine.graphs import Graphs
from retrv_engine.job import Extend
from retrv_engine.pages import pages_of
from retrv_engine.sampler import COLUMNS, Choice, Level, Masks, Picked, fill_columns, picked, sample
from retrv_engine.sharing import PrefixNode, Sharing, is_worth_a_tree
from retrv_kernels.decoder_layers import AttentionPart

BUCKETS = (1, 2, 4, 8, 16, 24)
"""Numbers of sequences of a fixed step, besides ``max_sequences``."""
TIER = 512
"""Rows of the shortest context of a fixed step; each tier is four times the one before."""
KEPT = 96
"""Number of steps of different shapes that are kept; the least recently used are dropped."""
Model = Callable[[Tensor, Tensor, Batch], Tensor]
"""Maps tokens ``[b]``, positions ``[b]`` and the batch to float32 logits ``[b, vocabulary]``."""


class Shape(NamedTuple):
    """Shape of a decode step.

    Attributes:
        rows: number of sequences, padding included.
        pages: number of columns of the page table.
        nodes: number of nodes of the tree of shared prefixes, padding included; 0 without a tree.
        level: level of the sampler.
    """

    rows: int
    pages: int
    nodes: int
    level: Level


class Inputs:
    """Inputs of a step, as views of one buffer of int64.

    Attributes:
        rows: token, position, slot, page, offset in the page and length of each sequence,
            ``[6, b]``.
        columns: values for :func:`retrv_engine.sampler.sample`, ``[5, b]``.
        table: pages of sequences, or of nodes, ``[b or nodes, pages]``.
        node_lens, node_rows: arguments of shared_prefix_attention, ``[nodes]``, ``[nodes, 2]``.
    """

    def __init__(self, shape: Shape, device: torch.device, pinned: bool = False) -> None:
        rows, pages, nodes, _ = shape
        sizes = [6 * rows, COLUMNS * rows, (nodes or rows) * pages, nodes, 2 * nodes]
        self.buffer = torch.zeros(sum(sizes), dtype=torch.long, device=device, pin_memory=pinned)
        parts = self.buffer.split(sizes)
        self.rows = parts[0].view(6, rows)
        self.columns = parts[1].view(COLUMNS, rows)
        self.table = parts[2].view(-1, pages)
        self.node_lens, self.node_rows = parts[3], parts[4].view(nodes, 2)


class DecodeStep:
    """A decode step of one shape.

    Args:
        spare: number of a page that belongs to nobody, which padding rows write to.
        graphs: graphs that capture the step on its second run and replay it later, or None.
    """

    def __init__(self, shape: Shape, cache: PagedCache, spare: int, graphs: Graphs | None) -> None:
        self.shape, self.cache, self.spare, self._graphs = shape, cache, spare, graphs
        device = cache.values.device
        cuda = device.type == "cuda"
        self.inputs = Inputs(shape, device)
        self.host = Inputs(shape, torch.device("cpu"), pinned=cuda)
        self._rows, self._columns = self.host.rows.numpy(), self.host.columns.numpy()
        self._table, self._node_lens, self._node_rows = (
            x.numpy() for x in (self.host.table, self.host.node_lens, self.host.node_rows)
        )
        self._found = torch.empty(3, shape.rows, dtype=torch.float64, pin_memory=cuda)
        self._written: list[tuple[list[int], int]] = [([], 0)] * shape.rows
        self._filled = shape.rows  # rows filled by the last call; the others are padding
        self._ran = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self.batch = self._batch()

    def fill(
        self,
        extends: Sequence[Extend],
        nodes: Sequence[PrefixNode],
        choices: Sequence[Choice],
        masks: Masks,
    ) -> None:
        """Writes the inputs of a step.

        Args:
            extends: extends of one row each.
            nodes: nodes of the tree that their sequences form, if the shape has any.
            choices: how the token of each row is taken.
        """
        size, count = self.cache.page_size, len(extends)
        rows = []
        for job, first, _ in extends:
            token = next(job.context.placed(first, first + 1))
            page, offset = job.pages[first // size], first % size
            at = page * size + offset
            rows.append((token.row, token.position, at, page, offset, first + 1))
        self._rows[:, :count] = np.array(rows).T
        fill_columns(self._columns[:, :count], choices, masks)
        if self._filled > count:
            self._pad(count)
        self._filled = count
        if self.shape.nodes:
            self._fill_nodes(nodes)
        else:
            self._fill_table(extends)
        self.inputs.buffer.copy_(self.host.buffer, non_blocking=True)
        self._masks = masks.table

    def compute(self, model: Model) -> None:
        """Runs the model and the sampler."""
        graphs = self._graphs
        if self._graph is None and self._ran and graphs is not None and not graphs.refused:
            self._graph = graphs.capture(lambda: self._compute(model))
        if self._graph is not None:
            self._graph.replay()
        else:
            self._compute(model)
        self._ran = True

    def take(self, choices: Sequence[Choice]) -> list[Picked]:
        """Tokens of the filled rows; waits for the device."""
        found = self._sampled
        if found.device.type == "cuda":
            self._found.copy_(found, non_blocking=True)
            done = torch.cuda.Event()
            done.record(torch.cuda.current_stream(found.device))
            done.synchronize()
            found = self._found
        count = len(choices)
        return picked(found[:, :count].tolist(), choices, self._logits)

    def _compute(self, model: Model) -> None:
        token, position = self.inputs.rows[:2]
        self._logits = model(token, position, self.batch)
        self._sampled = sample(self._logits, self._masks, self.inputs.columns, self.shape.level)

    def _batch(self) -> Batch:
        inputs, rows = self.inputs, self.shape.rows
        if self.shape.nodes:
            offsets, lengths = inputs.node_rows, inputs.node_lens
        else:
            offsets = torch.arange(rows + 1, device=inputs.buffer.device)
            lengths = inputs.rows[5]
        part = AttentionPart(bool(self.shape.nodes), slice(0, rows), inputs.table, offsets, lengths)
        _, _, slots, pages, places, _ = inputs.rows
        return Batch([part], self.cache, slots, (pages, places))

    def _pad(self, count: int) -> None:
        """Fills the rows after the first ``count`` with padding, whose results nobody reads."""
        at = self.spare * self.cache.page_size
        self._rows[:, count:] = np.array([[0, 0, at, self.spare, 0, 1]]).T
        self._columns[:, count:] = 0  # greedy, all tokens permitted
        self._columns[1, count:] = -1
        self._written[count:] = [([], 0)] * (self.shape.rows - count)
        if not self.shape.nodes:
            self._table[count:, 0] = self.spare

    def _fill_table(self, extends: Sequence[Extend]) -> None:
        """Writes the pages that the table does not have yet."""
        for i, (job, _, stop) in enumerate(extends):
            pages, known = self._written[i]
            need = pages_of(stop, self.cache.page_size)
            if pages is not job.pages:  # another job, or this one was preempted meanwhile
                known = 0
            if need > known:
                self._table[i, known:need] = job.pages[known:need]
                self._written[i] = job.pages, need

    def _fill_nodes(self, nodes: Sequence[PrefixNode]) -> None:
        for i, node in enumerate(nodes):
            self._table[i, : len(node.pages)] = node.pages
        count = len(nodes)
        self._node_lens[:count] = [node.length for node in nodes]
        self._node_rows[:count] = [(node.first, node.stop) for node in nodes]
        self._node_lens[count:] = 0
        self._node_rows[count:] = 0


class DecodeSteps:
    """The decode steps of an engine, by shape.

    Args:
        fixed: whether steps have a few shapes, with padding, which a GPU replays; else each step
            has its own.
        most: largest number of sequences of a step.
    """

    def __init__(self, cache: PagedCache, spare: int, fixed: bool, most: int) -> None:
        self.cache, self.spare = cache, spare
        self.fixed, self.buckets = fixed, [*(b for b in BUCKETS if b < most), most]
        self.device = cache.values.device
        replayed = fixed and self.device.type == "cuda"
        self.graphs = Graphs(self.device) if replayed else None
        self.kept: OrderedDict[Shape, DecodeStep] = OrderedDict()
        self._sharing = Sharing([], [], [], [])

    def run(
        self, model: Model, extends: Sequence[Extend], choices: Sequence[Choice], masks: Masks
    ) -> list[Picked]:
        """Computes a row of each sequence; returns their tokens, in the order of ``extends``.

        Args:
            model: model, the same in every call; it must not wait for the device.
        """
        size, pages = self.cache.page_size, [extend.job.pages for extend in extends]
        if not self._sharing.holds(pages):
            self._sharing = Sharing.of(pages, [extend.stop for extend in extends], size)
        ordered = [extends[i] for i in self._sharing.order]
        chosen = [choices[i] for i in self._sharing.order]
        worth = is_worth_a_tree(self._sharing.inner, self.device)
        nodes = self._sharing.nodes([extend.stop for extend in ordered], size) if worth else []
        longest = max(extend.stop for extend in extends)
        step = self.step(self.shape(len(extends), longest, len(nodes), Level.of(choices)))
        step.fill(ordered, nodes, chosen, masks)
        step.compute(model)
        found = dict(zip(self._sharing.order, step.take(chosen), strict=True))
        return [found[i] for i in range(len(extends))]

    def shape(self, rows: int, longest: int, nodes: int, level: Level) -> Shape:
        """Shape of a step of so many rows and nodes."""
        *_, tier = tiers(longest)
        if self.fixed:
            rows = next(bucket for bucket in self.buckets if bucket >= rows)
            nodes = 2 * rows if nodes else 0
        return Shape(rows, pages_of(tier, self.cache.page_size), nodes, level)

    def step(self, shape: Shape) -> DecodeStep:
        """The step of a shape."""
        if shape not in self.kept:
            if len(self.kept) == KEPT:
                self.kept.popitem(last=False)
            self.kept[shape] = DecodeStep(shape, self.cache, self.spare, self.graphs)
        self.kept.move_to_end(shape)
        return self.kept[shape]

    def clear(self) -> None:
        """Drops all steps: after an error, or when the model's parameters have moved."""
        self.kept.clear()
        if self.graphs is not None:
            self.graphs.forget()


def tiers(rows: int) -> list[int]:
    """Context lengths of fixed steps, up to the first of at least ``rows`` rows."""
    found = [TIER]
    while found[-1] < rows:
        found.append(4 * found[-1])
    return found
