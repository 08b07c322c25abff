"""Packed items: the rows of all items in one tensor, and the offset of each item's first row."""

from __future__ import annotations

import torch
from torch import Tensor


def pad_rows(rows: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """Packed rows ``[n, …]`` as ``[m, longest, …]``, padded with zeros, and the mask of real rows.

    Offsets should be on the CPU: their lengths are read there, which otherwise waits for the
    device.
    """
    offsets = cu_seqlens.cpu().long()
    lengths = offsets.diff()
    count, longest = len(lengths), int(lengths.max()) if len(lengths) else 0
    if longest and bool((lengths == longest).all()):  # no padding, so no copy
        rows = rows.unflatten(0, (count, longest))
        return rows, torch.ones(count, longest, dtype=torch.bool, device=rows.device)
    # One scatter, because a copy for each item would copy the whole batch for each in backward.
    owner = torch.arange(count).repeat_interleave(lengths)
    place = torch.arange(len(rows)) + owner * longest - offsets[owner]
    padded = rows.new_zeros(count * longest, *rows.shape[1:])
    padded = padded.index_copy(0, place.to(rows.device), rows).unflatten(0, (count, longest))
    mask = torch.arange(longest) < lengths[:, None]
    return padded, mask.to(rows.device)


def take_items(rows: Tensor, cu_seqlens: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of ``items``, packed in that order, and their offsets."""
    offsets, items = cu_seqlens.cpu().long(), items.cpu().long()
    lengths = offsets.diff()[items]
    taken = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    owner = torch.arange(len(items)).repeat_interleave(lengths)
    place = torch.arange(int(taken[-1])) - taken[owner] + offsets[items][owner]
    return rows[place.to(rows.device)], taken


def widen(tensor: Tensor) -> Tensor:
    """The tensor in float32, for accumulation; float64 stays float64, for tests."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def dequantize(rows: Tensor, scales: Tensor | None) -> Tensor:
    """Rows in float32 (or float64), multiplied by their scales if they have any."""
    return widen(rows) if scales is None else scales[:, None] * rows.to(scales.dtype)


def quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """int8 rows ``[n, d]`` and scales ``[n]``: symmetric, a row's largest value becomes 127."""
    scales = rows.abs().amax(dim=-1).float() / 127
    steps = rows.float() / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    return steps.round().clamp(-127, 127).to(torch.int8), scales
