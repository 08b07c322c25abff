"""The public function, its checks and its registration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retrv_kernels import checks
from retrv_kernels.torch_operator import register


class Span(NamedTuple):
    """Consecutive rows of one store that become consecutive rows of one sequence.

    Args:
        store: index of the store.
        row: first row in the store.
        length: number of rows.
        position: position in the sequence at which the rows' text or picture begins.
        width: number of columns of the picture's grid, which is stored row by row; 0 for text.
        sequence: row of the page table.
        slot: number of cached rows of the sequence before the first row.
        start: index of the first row within its text or picture, which may be split anywhere.
    """

    store: int
    row: int
    length: int
    position: int
    width: int
    sequence: int
    slot: int
    start: int = 0


class Splice(NamedTuple):
    """A packed prefill batch of n rows.

    Args:
        embeds: embeddings, ``[n, d]``.
        positions: temporal, vertical and horizontal positions, ``[3, n]`` int64.
        slots: slot of each row in the paged cache, page · page size + offset, ``[n]`` int64.
    """

    embeds: Tensor
    positions: Tensor
    slots: Tensor


def splice_features(
    stores: Sequence[Tensor],
    spans: Sequence[Span],
    page_table: Tensor,
    page_size: int,
    *,
    scales: Sequence[Tensor | None] | None = None,
    dtype: torch.dtype | None = None,
) -> Splice:
    """Gathers rows of feature stores into one packed prefill batch, for many sequences at once.

    An inspected candidate is a few spans: its wrapper tokens are rows of the embedding table, which
    is a store too, and its features are rows of another store. Row i of a span gets slot
    ``slot + i`` and, with k = start + i, position ``p + (k, k, k)`` in a text or
    ``p + (0, k // width, k % width)`` in a picture (Qwen-VL's M-RoPE). Not differentiable.

    Args:
        stores: tables ``[rows, d]``, float32, float16, bfloat16, or int8 with scales; at most 16.
        spans: spans in the order of the packed batch; those of a sequence are neighbours.
        page_table: pages of each sequence in order, ``[b, pages]`` integers.
        page_size: rows in a page.
        scales: ``[rows]`` float32 scales of each int8 store; None for a store of floats.
        dtype: dtype of the embeddings; that of the first store if None.

    Raises:
        ValueError: a shape or dtype is invalid, or a span needs rows or slots that do not exist.
    """
    scales = [None] * len(stores) if scales is None else scales
    if not 0 < len(stores) == len(scales) <= 16:
        raise ValueError(
            f"there must be 1 to 16 stores and as many scales, not {len(stores)} and {len(scales)}"
        )
    width = stores[0].shape[-1]
    for i, (store, scale) in enumerate(zip(stores, scales, strict=True)):
        checks.rows(f"stores[{i}]", store, scale)
        checks.shape(f"stores[{i}]", store, "rows", width)
    dtype = stores[0].dtype if dtype is None else dtype
    if dtype not in checks.FLOATS:
        raise ValueError(f"dtype must be a float dtype, not {dtype}")
    checks.shape("page_table", page_table, "b", "pages")
    checks.dtype("page_table", page_table, checks.INTEGERS)
    if page_size < 1:
        raise ValueError(f"page_size must be 1 or more, not {page_size}")
    for i, span in enumerate(spans):
        _check_span(f"spans[{i}]", span, stores, page_table.shape, page_size)
    given: dict[str, Tensor | None] = {f"stores[{i}]": s for i, s in enumerate(stores)}
    given |= {f"scales[{i}]": scale for i, scale in enumerate(scales)}
    checks.compatible(**given, page_table=page_table)
    checks.no_gradient(*stores)
    rows = sum(span.length for span in spans)
    table = torch.tensor(spans, dtype=torch.int64).reshape(-1, len(Span._fields))
    out = torch.ops.retrv_kernels.splice_features(
        list(stores), list(scales), table.to(page_table.device), page_table, page_size, rows, dtype
    )
    return Splice(*out)


def _check_span(
    name: str, span: Span, stores: Sequence[Tensor], pages: Sequence[int], page_size: int
) -> None:
    if min(span) < 0:
        raise ValueError(f"{name} must not hold negative numbers: {span}")
    if span.store >= len(stores) or span.row + span.length > len(stores[span.store]):
        raise ValueError(f"{name} needs rows that its store does not have: {span}")
    if span.sequence >= pages[0] or span.slot + span.length > pages[1] * page_size:
        raise ValueError(f"{name} needs slots that the page table does not have: {span}")


def _fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    stores, _, spans, _, _, rows, dtype = arguments
    return (
        stores[0].new_empty((rows, stores[0].shape[1]), dtype=dtype),
        spans.new_empty((3, rows)),
        spans.new_empty((rows,)),
    )


register("splice_features", _fake)
