"""One program for each row and block of columns."""

# mypy: disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from retrv_kernels.triton_common import on_tensor_device

# 16 bytes of half-precision columns for each thread of four warps.
BLOCK = 1024


@on_tensor_device
def silu_product(gate_up: Tensor) -> Tensor:
    """Triton implementation of `retrv_kernels.ops.silu_product`."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    gate_up = gate_up.contiguous()
    out = gate_up.new_empty((rows, width))
    _silu_product[(rows, triton.cdiv(width, BLOCK))](gate_up, out, width, BLOCK=BLOCK, num_warps=4)
    return out


@triton.jit
def _silu_product(gate_up, out, width, BLOCK: tl.constexpr):
    row, c = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    own, place = c < width, 2 * row * width + c
    dtype = out.dtype.element_ty
    gate = tl.load(gate_up + place, own, other=0).to(tl.float32)
    up = tl.load(gate_up + place + width, own, other=0).to(tl.float32)
    silu = (gate / (1 + tl.exp(-gate))).to(dtype).to(tl.float32)
    tl.store(out + row * width + c, (silu * up).to(dtype), own)
