"""One program for each row, which it reads once and keeps in registers."""

# mypy: disallow-incomplete-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from retrv_kernels.triton_common import on_tensor_device, padded


@on_tensor_device
def add_rms_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Triton implementation of `retrv_kernels.ops.add_rms_norm`."""
    rows, width = x.shape
    x, weight = x.contiguous(), weight.contiguous()
    delta = None if delta is None else delta.contiguous()
    total, normed = torch.empty_like(x), torch.empty_like(x)
    _add_rms_norm[(rows,)](
        x,
        delta,
        weight,
        total,
        normed,
        width,
        eps,
        WIDTH=padded(width),
        # 2048 half-precision columns are 16 bytes for each thread of eight warps.
        num_warps=8 if width > 1024 else 4,
    )
    return total, normed


@triton.jit
def _add_rms_norm(x, delta, weight, total, normed, width, eps, WIDTH: tl.constexpr):
    row, c = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    own, place = c < width, row * width + c
    dtype = x.dtype.element_ty
    values = tl.load(x + place, own, other=0).to(tl.float32)
    if delta is not None:
        values += tl.load(delta + place, own, other=0).to(tl.float32)
    values = values.to(dtype)
    tl.store(total + place, values, own)
    values = values.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values) / width + eps)
    result = values * scale * tl.load(weight + c, own, other=0).to(tl.float32)
    tl.store(normed + place, result.to(dtype), own)
