"""Each program handles some heads of a row (queries, keys or values), each as two halves."""

# mypy: disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from retrv_kernels.triton_common import on_tensor_device, padded

# With these, halves of 64 half-precision columns are 16 bytes for each thread of two warps.
HEADS, WARPS = 8, 2


@on_tensor_device
def rotate_to_pages(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    slots: Tensor,
    heads: int,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
) -> Tensor:
    """Triton implementation of `retrv_kernels.ops.rotate_to_pages`."""
    rows, every, width = qkv.shape
    qkv, cos, sin, slots = (tensor.contiguous() for tensor in (qkv, cos, sin, slots))
    query = qkv.new_empty((rows, heads, width))
    _rotate[(rows, triton.cdiv(every, HEADS))](
        qkv,
        cos,
        sin,
        key_pages,
        value_pages,
        slots,
        q_norm,
        k_norm,
        query,
        heads,
        key_pages.shape[2],
        width // 2,
        *key_pages.stride()[:3],
        eps,
        PAGE=key_pages.shape[1],
        HEADS=HEADS,
        HALF=padded(width // 2),
        num_warps=WARPS,
    )
    return query


@triton.jit
def _rotate(
    qkv,
    cos,
    sin,
    key_pages,
    value_pages,
    slots,
    q_norm,
    k_norm,
    query,
    heads,
    kv_heads,
    half,
    page_stride,
    row_stride,
    head_stride,
    eps,
    PAGE: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    h, c = tl.program_id(1) * HEADS + tl.arange(0, HEADS), tl.arange(0, HALF)
    dtype = qkv.dtype.element_ty
    column = c < half
    place = ((row * (heads + 2 * kv_heads) + h) * 2 * half)[:, None] + c[None, :]
    own = (h < heads + 2 * kv_heads)[:, None] & column[None, :]
    x = tl.load(qkv + place, own, other=0).to(tl.float32)
    y = tl.load(qkv + place + half, own, other=0).to(tl.float32)
    if q_norm is not None:
        scale = tl.rsqrt((tl.sum(x * x, 1) + tl.sum(y * y, 1)) / (2 * half) + eps)[:, None]
        is_query, is_value = (h < heads)[:, None], (h >= heads + kv_heads)[:, None]
        xs = _either(q_norm + c, k_norm + c, column, is_query)
        ys = _either(q_norm + half + c, k_norm + half + c, column, is_query)
        x = tl.where(is_value, x, (x * scale * xs).to(dtype).to(tl.float32))
        y = tl.where(is_value, y, (y * scale * ys).to(dtype).to(tl.float32))
    turn = row * 2 * half + c
    first = _turned(x, y, cos + turn, sin + turn, column, dtype)
    second = _turned(y, x, cos + half + turn, sin + half + turn, column, dtype)
    to = query + ((row * heads + h) * 2 * half)[:, None] + c[None, :]
    mine = (h < heads)[:, None] & column[None, :]
    tl.store(to, first, mine)
    tl.store(to + half, second, mine)
    slot = tl.load(slots + row).to(tl.int64)
    base = slot // PAGE * page_stride + slot % PAGE * row_stride
    k = h - heads
    to = key_pages + base + (k * head_stride)[:, None] + c[None, :]
    mine = ((k >= 0) & (k < kv_heads))[:, None] & column[None, :]
    tl.store(to, first, mine)
    tl.store(to + half, second, mine)
    v = k - kv_heads
    to = value_pages + base + (v * head_stride)[:, None] + c[None, :]
    mine = ((v >= 0) & (v < kv_heads))[:, None] & column[None, :]
    tl.store(to, x.to(dtype), mine)
    tl.store(to + half, y.to(dtype), mine)


@triton.jit
def _either(of_queries, of_keys, column, is_query):
    """Weights of each head's norm."""
    a, b = tl.load(of_queries, column, other=0), tl.load(of_keys, column, other=0)
    return tl.where(is_query, a.to(tl.float32)[None, :], b.to(tl.float32)[None, :])


@triton.jit
def _turned(x, other, cos, sin, column, dtype: tl.constexpr):
    """One rotated half, rounded where PyTorch's product and sum round."""
    a = tl.load(cos, column, other=0).to(tl.float32)[None, :]
    b = tl.load(sin, column, other=0).to(tl.float32)[None, :]
    return ((x * a).to(dtype).to(tl.float32) + other * b).to(dtype)
