"""The rows of a step as attention takes them, over the paged cache.

transformers passes a layer's queries, keys and values to an attention function that is registered
by name. Ours writes the keys and values into the layer's pages, and the new rows attend to all rows
of their sequences there. Decoding sequences read a shared prefix once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from retrv_engine.job import Extend
from retrv_engine.pages import pages_of
from retrv_engine.sharing import is_worth_a_tree, tree_of
from retrv_kernels.decoder_layers import AttentionPart
from retrv_kernels.ops import unchecked

NAME = "retrv_paged"


@dataclass(frozen=True)
class PagedCache:
    """Keys and values of all layers, ``[layers, 2, pages, H_kv, page size, d_h]``."""

    values: Tensor

    @property
    def page_size(self) -> int:
        """Number of rows of a page."""
        return self.values.shape[4]

    def layer(self, number: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer as kernels take them, ``[pages, page size, H_kv, d_h]``."""
        keys, values = self.values[number].transpose(2, 3)
        return keys, values

    def copy(self, source: int, target: int, rows: int) -> None:
        """Copies the first rows of a page to another, in all layers."""
        self.values[:, :, target, :, :rows] = self.values[:, :, source, :, :rows]


@dataclass(frozen=True)
class Batch:
    """The rows of a step, as attention takes them.

    Attributes:
        parts: arguments of the attention kernels: one part for rows that share prefixes, one for
            the others.
        slots: slot of each row in the cache, page times page size plus offset, ``[n]``.
        places: pages and offsets of the slots.
    """

    parts: Sequence[AttentionPart]
    cache: PagedCache
    slots: Tensor
    places: tuple[Tensor, Tensor]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Writes new keys and values ``[n, H_kv, d_h]``, and attends to them; see :meth:`read`."""
        keys, values = self.cache.layer(layer)
        keys[self.places] = key
        values[self.places] = value
        return self.read(layer, query, scale)

    def read(self, layer: int, query: Tensor, scale: float) -> Tensor:
        """Attention of ``query [n, H, d_h]`` over a layer's cache, new rows included."""
        keys, values = self.cache.layer(layer)
        device = query.device.type
        out = []
        for part in self.parts:
            op, tables = "paged_attention", (part.offsets, part.lengths)
            if part.shared:
                op, tables = "shared_prefix_attention", (part.lengths, part.offsets)
            attend = unchecked(op, device, query.dtype)
            out.append(attend(query[part.rows], keys, values, part.page_table, *tables, scale))
        return out[0] if len(out) == 1 else torch.cat(out)


@dataclass(frozen=True)
class Plan:
    """The rows of a step in packed order: first those of sequences with a single row.

    Attributes:
        order: index of the extend at each place.
        page_table: pages of each sequence, in ``order``.
        parts: see :class:`Batch`.
        due: rows from whose logits tokens are taken, in the order of the extends.
    """

    order: Sequence[int]
    page_table: Tensor
    parts: Sequence[AttentionPart]
    due: Tensor

    @classmethod
    def of(cls, extends: Sequence[Extend], page_size: int, device: torch.device) -> Plan:
        """Arranges a step."""
        number = range(len(extends))
        order = sorted(
            number, key=lambda i: (extends[i].stop - extends[i].first > 1, extends[i].job.pages)
        )
        arranged = [extends[i] for i in order]
        pages = [job.pages[: pages_of(stop, page_size)] for job, _, stop in arranged]
        lengths = [stop for _, _, stop in arranged]
        starts, due = [0], {}
        for i, extend in zip(order, arranged, strict=True):
            starts.append(starts[-1] + extend.stop - extend.first)
            due[i] = range(starts[-1] - extend.due, starts[-1])
        page_table = _padded(pages, device)
        parts, first = [], 0
        singles = sum(stop - first == 1 for _, first, stop in extends)
        nodes = tree_of(pages[:singles], lengths[:singles], page_size)
        if is_worth_a_tree(nodes, device):
            table = _padded([node.pages for node in nodes], device)
            rows = torch.tensor([(node.first, node.stop) for node in nodes], device=device)
            sizes = torch.tensor([node.length for node in nodes], device=device)
            parts.append(AttentionPart(True, slice(0, singles), table, rows, sizes))
            first = singles
        if first < len(extends):
            offsets = torch.tensor([start - first for start in starts[first:]], device=device)
            sizes = torch.tensor(lengths[first:], device=device)
            rest = slice(first, None)
            parts.append(AttentionPart(False, rest, page_table[first:], offsets, sizes))
        last = [row for i in number for row in due[i]]
        return cls(order, page_table, parts, torch.tensor(last, dtype=torch.long, device=device))

    def place(self, cache: PagedCache, slots: Tensor) -> Batch:
        """The batch whose rows are written to ``slots [n]`` of a cache."""
        size = cache.page_size
        return Batch(self.parts, cache, slots, (slots // size, slots % size))


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Rows of unequal length as one tensor; the padding is never read."""
    most = max(map(len, rows), default=0)
    return torch.tensor([[*row, *[0] * (most - len(row))] for row in rows], device=device)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    retrv_batch: Batch,
    **_: object,
) -> tuple[Tensor, None]:
    """``query [1, H, n, d_h]``, ``key``, ``value [1, H_kv, n, d_h]`` → ``[1, n, H, d_h]``."""
    layer: int = module.layer_idx  # type: ignore[assignment]
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    return retrv_batch.attend(layer, query, key, value, scaling)[None], None


def register() -> None:
    """Registers the attention function with transformers."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
