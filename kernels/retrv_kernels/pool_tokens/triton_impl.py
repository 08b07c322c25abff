"""One program for each chunk of rows, then a merge for each item.

A row is read once: its norm, its scores and its part of the sums come from the same registers, so
a program holds whole rows. Products run on the ordinary cores: with four heads there are nine for
each element, which by its data sheet takes an H100 half as long as reading the element. This has
not been timed.
"""

# mypy: disallow-incomplete-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from retrv_kernels.triton_common import chunk_of, on_tensor_device, padded

# 50 items of 256 rows make 200 chunks for 132 multiprocessors. The float32 partial sums of four
# heads are an eighth of the size of a chunk of half-precision rows.
CHUNK = 64


@on_tensor_device
def pool_tokens(
    features: Tensor,
    cu_seqlens: Tensor,
    folded_queries: Tensor,
    scales: Tensor | None,
    eps: float,
) -> Tensor:
    """Triton implementation of `retrv_kernels.ops.pool_tokens`."""
    items, (heads, width) = len(cu_seqlens) - 1, folded_queries.shape
    features, queries, cu_seqlens = (
        tensor.contiguous() for tensor in (features, folded_queries, cu_seqlens)
    )
    scales = None if scales is None else scales.contiguous()
    chunks = len(features) // CHUNK + items
    sums = features.new_empty((chunks, heads, width), dtype=torch.float32)
    tops = sums.new_empty((chunks, heads))
    totals = torch.empty_like(tops)
    block, group, rows, warps = _configuration(heads, width)
    _pool_chunks[(chunks, triton.cdiv(heads, group))](
        features,
        scales,
        cu_seqlens,
        queries,
        tops,
        totals,
        sums,
        items,
        heads,
        width,
        eps,
        CHUNK=CHUNK,
        ROWS=rows,
        HEADS=group,
        WIDTH=block,
        num_warps=warps,
    )
    out = sums.new_empty((items, heads, width))
    block = min(padded(width), 1024)
    _merge[(items, heads, triton.cdiv(width, block))](
        cu_seqlens, tops, totals, sums, out, heads, width, CHUNK=CHUNK, WIDTH=block
    )
    return out


def _configuration(heads: int, width: int) -> tuple[int, int, int, int]:
    """Padded width, heads of a program, rows in a step, and warps.

    Up to a width of 4096 a thread holds 8 columns of each head's query and sums, and of each row.
    Four heads and two rows compile to 128 registers on sm_90, which allows two programs on a
    multiprocessor; four rows would take 171. If not all heads fit, the rows are read again.
    """
    block = padded(width, 16)
    group = min(padded(heads), max(16384 // block, 1))
    return block, group, 2 if group * block <= 8192 else 1, min(max(block // 256, 1), 16)


@triton.jit(do_not_specialize=["items"], do_not_specialize_on_alignment=["scales", "offsets"])
def _pool_chunks(
    features,
    scales,
    offsets,
    queries,
    tops,
    totals,
    sums,
    items,
    heads,
    width,
    eps,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    number = tl.program_id(0)
    _, start, stop = chunk_of(offsets, items, number, CHUNK)
    if start >= stop:
        return
    h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    c = tl.arange(0, WIDTH)
    own = (h < heads)[:, None] & (c < width)[None, :]
    query = tl.load(queries + h[:, None] * width + c[None, :], own, other=0).to(tl.float32)
    top = tl.full([HEADS], float("-inf"), tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    pooled = tl.zeros([HEADS, WIDTH], tl.float32)
    rows = (stop - start).to(tl.int32)
    for first in range(0, rows, ROWS):
        i = first + tl.arange(0, ROWS)
        there = (i < rows)[:, None] & (c < width)[None, :]
        place = start * width + i[:, None] * width + c[None, :]
        x = tl.load(features + place, there, other=0).to(tl.float32)
        squares = tl.sum(x * x, 1) / width
        if scales is None:
            factor = tl.rsqrt(squares + eps)
        else:
            scale = tl.load(scales + start + i, i < rows, other=0)
            factor = scale * tl.rsqrt(scale * scale * squares + eps)
        factor = tl.where(i < rows, factor, 0)  # a missing row would give infinity without eps
        scores = tl.sum(x[:, None, :] * query[None, :, :], 2) * factor[:, None]
        scores = tl.where((i < rows)[:, None], scores, float("-inf"))
        highest = tl.maximum(top, tl.max(scores, 0))
        kept = tl.exp(top - highest)
        weights = tl.exp(scores - highest[None, :])
        total = total * kept + tl.sum(weights, 0)
        weights *= factor[:, None]
        pooled = pooled * kept[:, None] + tl.sum(weights[:, :, None] * x[:, None, :], 0)
        top = highest
    part = number * heads + h
    tl.store(tops + part, top, h < heads)
    tl.store(totals + part, total, h < heads)
    tl.store(sums + part.to(tl.int64)[:, None] * width + c[None, :], pooled, own)


@triton.jit(do_not_specialize_on_alignment=["offsets"])
def _merge(
    offsets, tops, totals, sums, out, heads, width, CHUNK: tl.constexpr, WIDTH: tl.constexpr
):
    item, h = tl.program_id(0), tl.program_id(1)
    c = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    begin, end = tl.load(offsets + item), tl.load(offsets + item + 1)
    first = begin // CHUNK + item
    top, total = float("-inf"), 0.0
    merged = tl.zeros([WIDTH], tl.float32)
    for number in range(first, first + tl.cdiv(end - begin, CHUNK)):
        part = (number * heads + h).to(tl.int64)
        own = tl.load(tops + part)
        highest = tl.maximum(top, own)
        kept, added = tl.exp(top - highest), tl.exp(own - highest)
        total = total * kept + tl.load(totals + part) * added
        merged = merged * kept + added * tl.load(sums + part * width + c, c < width, other=0)
        top = highest
    tl.store(
        out + (item.to(tl.int64) * heads + h) * width + c,
        merged / tl.where(total > 0, total, 1.0),
        c < width,
    )
