"""Torch's threads share the rows; a row of the same dtype is one copy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from retrv_kernels import native


def splice_features(
    stores: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    spans: Tensor,
    page_table: Tensor,
    page_size: int,
    rows: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Native implementation of `retrv_kernels.ops.splice_features`."""
    kept = [store.contiguous() for store in stores]
    kept_scales = [None if scale is None else scale.contiguous() for scale in scales]
    width = kept[0].shape[1]
    table = torch.tensor(  # SpliceStore of native.h
        [
            [store.data_ptr(), native.address(scale), native.DTYPES[store.dtype]]
            for store, scale in zip(kept, kept_scales, strict=True)
        ]
    )
    lengths = spans[:, 2]
    placed = torch.cat([spans, (lengths.cumsum(0) - lengths)[:, None]], 1)[lengths > 0]
    pages = page_table.long().contiguous()
    embeds = torch.empty(rows, width, dtype=dtype)
    positions = torch.empty(3, rows, dtype=torch.int64)
    slots = torch.empty(rows, dtype=torch.int64)
    native.function("splice_features")(
        table.data_ptr(),
        placed.data_ptr(),
        len(placed),
        width,
        pages.data_ptr(),
        pages.shape[1],
        page_size,
        rows,
        native.DTYPES[dtype],
        embeds.data_ptr(),
        positions.data_ptr(),
        slots.data_ptr(),
        torch.get_num_threads(),
    )
    return embeds, positions, slots
