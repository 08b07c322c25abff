"""One kernel for decode and prefill: a program handles some new rows for all heads of a cache head.

So keys and values are read once for the group of heads, and the group fills a decode step's tile.
"""

# mypy: disallow-incomplete-defs=False

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from retrv_kernels.paged_attention.layout import with_equal_strides
from retrv_kernels.triton_common import (
    attend,
    chunk_of,
    dot_precision,
    dot_type,
    empty_parts,
    merge,
    on_tensor_device,
    padded,
    split_count,
    store_empty,
    store_part,
)


@on_tensor_device
def paged_attention(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    cu_seqlens: Tensor,
    kv_lens: Tensor,
    scale: float,
) -> Tensor:
    """Triton implementation of `retrv_kernels.ops.paged_attention`."""
    (rows, heads, width), sequences = query.shape, len(kv_lens)
    page_size, kv_heads = key_pages.shape[1:3]
    query, page_table, cu_seqlens, kv_lens = (
        tensor.contiguous() for tensor in (query, page_table, cu_seqlens, kv_lens)
    )
    key_pages, value_pages = with_equal_strides(key_pages, value_pages)
    group = heads // kv_heads
    tile, block, warps = _configuration(query, group, sequences)
    chunk = tile // group
    chunks = rows // chunk + sequences
    count = split_count(chunks * kv_heads, triton.cdiv(page_table.shape[1] * page_size, block))
    parts, lse = empty_parts(query, count)
    _attend_pages[(chunks, kv_heads, count)](
        query,
        key_pages,
        value_pages,
        page_table,
        cu_seqlens,
        kv_lens,
        parts,
        lse,
        rows,
        sequences,
        heads,
        width,
        page_table.shape[1],
        *key_pages.stride()[:3],
        scale * math.log2(math.e),
        GROUP=group,
        PAGE=page_size,
        CHUNK=chunk,
        TILE=tile,
        BLOCK=block,
        WIDTH=padded(width, 16),
        DOT=dot_type(query),
        PRECISION=dot_precision(dot_type(query)),
        num_warps=warps,
        num_stages=2,
    )
    return merge(parts, lse, query.dtype)


def _configuration(query: Tensor, group: int, sequences: int) -> tuple[int, int, int]:
    """Rows of a tile (query rows times heads), cached rows in a step, and warps.

    A decode step has only the heads of a group and gets the smallest tile that tensor cores take.
    A prefill can fill any tile: Hopper's products start at 64 rows, and with a head of 128 eight
    warps keep it from spilling on sm_80 and sm_120. float32 products run on the ordinary cores from
    registers, where half as much fits.
    """
    half, width, decode = query.element_size() == 2, query.shape[2], len(query) <= sequences
    tile = 16 if decode else 64 if half else 32
    block = 64 if half and width <= 128 else 16 if decode and not half else 32
    small = width <= 64 or (decode and half and width <= 128)
    return padded(group, tile), block, 4 if small else 8


# Sizes and the alignment of tables differ from step to step and must not cause a new compilation.
@triton.jit(
    do_not_specialize=["rows", "sequences", "max_pages"],
    do_not_specialize_on_alignment=["page_table", "offsets", "lengths"],
)
def _attend_pages(
    query,
    key_pages,
    value_pages,
    page_table,
    offsets,
    lengths,
    parts,
    lse,
    rows,
    sequences,
    heads,
    width,
    max_pages,
    page_stride,
    row_stride,
    head_stride,
    scale,
    GROUP: tl.constexpr,
    PAGE: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    head, split = tl.program_id(1), tl.program_id(2)
    b, start, stop = chunk_of(offsets, sequences, tl.program_id(0), CHUNK)
    if start >= stop:
        return
    m, c = tl.arange(0, TILE), tl.arange(0, WIDTH)
    row = start + m // GROUP
    own = (m // GROUP < CHUNK) & (row < stop)
    place = row * heads + head * GROUP + m % GROUP
    # The last cached rows are the new ones; each sees the rows up to itself.
    hidden = tl.load(offsets + b + 1).to(tl.int32) - tl.load(lengths + b).to(tl.int32)
    seen = stop.to(tl.int32) - hidden
    # The first split always has rows to read; without `split > 0` Triton 3.8 spills on sm_120.
    if (split > 0) & (split * BLOCK >= seen):
        store_empty(lse, split * rows * heads + place, own)
        return
    tile = tl.load(
        query + place[:, None] * width + c[None, :], own[:, None] & (c < width)[None, :], other=0
    ).to(DOT)
    limits = tl.where(own, (row + 1).to(tl.int32) - hidden, 0)
    top = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    pooled = tl.zeros([TILE, WIDTH], tl.float32)
    step = BLOCK
    if lse is not None:
        step = tl.num_programs(2) * BLOCK
    for first in range(split * BLOCK, seen, step):
        top, total, pooled = attend(
            tile,
            top,
            total,
            pooled,
            key_pages + head * head_stride,
            value_pages + head * head_stride,
            page_table + b * max_pages,
            first,
            seen,
            limits,
            page_stride,
            row_stride,
            width,
            scale,
            PAGE,
            BLOCK,
            WIDTH,
            PRECISION,
        )
    store_part(parts, lse, top, total, pooled, split * rows * heads + place, width, own, WIDTH)
