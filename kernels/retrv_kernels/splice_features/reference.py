"""The equation, one span at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from retrv_kernels.ragged import dequantize


def splice_features(
    stores: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    spans: Tensor,
    page_table: Tensor,
    page_size: int,
    rows: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Reference for `retrv_kernels.ops.splice_features`."""
    device = page_table.device
    embeds = [stores[0].new_empty(0, stores[0].shape[1], dtype=dtype)]
    positions = [torch.empty(3, 0, dtype=torch.int64, device=device)]
    slots = [torch.empty(0, dtype=torch.int64, device=device)]
    for store, row, length, position, width, sequence, slot, start in spans.tolist():
        own, scale = slice(row, row + length), scales[store]
        rows_of = dequantize(stores[store][own], None if scale is None else scale[own])
        embeds.append(rows_of.to(dtype))
        k = torch.arange(start, start + length, device=device)
        axes = (torch.zeros_like(k), k // width, k % width) if width else (k, k, k)
        positions.append(position + torch.stack(axes))
        places = slot + k - start
        pages = page_table[sequence, places // page_size].long()
        slots.append(pages * page_size + places % page_size)
    return torch.cat(embeds), torch.cat(positions, 1), torch.cat(slots)
