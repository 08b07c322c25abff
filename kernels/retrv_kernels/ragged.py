"""Packed items: rows one behind the other, offsets where each begins."""

from __future__ import annotations

import torch
from torch import Tensor


def pad_rows(rows: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """Splits packed rows ``[n, …]`` into ``[m, longest, …]`` and the mask of real rows.

    Padding is zeros. Offsets on the CPU, where their lengths are read, save a wait for the device.
    """
    offsets = cu_seqlens.cpu().long()
    lengths = offsets.diff()
    count, longest = len(lengths), int(lengths.max()) if len(lengths) else 0
    if longest and bool((lengths == longest).all()):  # no padding, so no copy
        rows = rows.unflatten(0, (count, longest))
        return rows, torch.ones(count, longest, dtype=torch.bool, device=rows.device)
    # One scatter: a copy per item would have a backward of one whole-batch copy per item.
    owner = torch.arange(count).repeat_interleave(lengths)
    place = torch.arange(len(rows)) + owner * longest - offsets[owner]
    padded = rows.new_zeros(count * longest, *rows.shape[1:])
    padded = padded.index_copy(0, place.to(rows.device), rows).unflatten(0, (count, longest))
    mask = torch.arange(longest) < lengths[:, None]
    return padded, mask.to(rows.device)


def take_items(rows: Tensor, cu_seqlens: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of some items, packed in the order asked for, and their offsets."""
    offsets, items = cu_seqlens.cpu().long(), items.cpu().long()
    lengths = offsets.diff()[items]
    taken = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    owner = torch.arange(len(items)).repeat_interleave(lengths)
    place = torch.arange(int(taken[-1])) - taken[owner] + offsets[items][owner]
    return rows[place.to(rows.device)], taken


def wide(tensor: Tensor) -> Tensor:
    """At least float32, for accumulation; float64 stays, for tests."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def dequantize(rows: Tensor, scales: Tensor | None) -> Tensor:
    """Rows as wide floats: int8 ones times their scale."""
    return wide(rows) if scales is None else scales[:, None] * rows.to(scales.dtype)


def quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """int8 rows ``[n, d]`` and their scales ``[n]``: symmetric, the largest value becomes 127."""
    scales = rows.abs().amax(dim=-1).float() / 127
    steps = rows.float() / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    return steps.round().clamp(-127, 127).to(torch.int8), scales
