"""A program handles some sequences for all heads of a cache head, over every node that covers one.

A node's rows are read once for the sequences of a program, whose tile has 64 rows of heads. The
online softmax continues from node to node, so the partial results of the tree stay in registers.
Several programs share the blocks of rows; their results are merged at the end.
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
def shared_prefix_attention(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    node_lens: Tensor,
    node_rows: Tensor,
    scale: float,
) -> Tensor:
    """Triton implementation of `retrv_kernels.ops.shared_prefix_attention`."""
    (rows, heads, width), nodes = query.shape, len(node_lens)
    page_size, kv_heads = key_pages.shape[1:3]
    query, page_table, node_lens, node_rows = (
        tensor.contiguous() for tensor in (query, page_table, node_lens, node_rows)
    )
    key_pages, value_pages = with_equal_strides(key_pages, value_pages)
    group = heads // kv_heads
    tile, block, warps = _configuration(query, group)
    chunk = tile // group
    chunks = triton.cdiv(rows, chunk)
    max_blocks = nodes * triton.cdiv(page_table.shape[1] * page_size, block)
    count = split_count(chunks * kv_heads, max_blocks)
    parts, lse = empty_parts(query, count)
    _attend_nodes[(chunks, kv_heads, count)](
        query,
        key_pages,
        value_pages,
        page_table,
        node_lens,
        node_rows,
        parts,
        lse,
        rows,
        nodes,
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
        NODES=padded(nodes, 64),
        WIDTH=padded(width, 16),
        DOT=dot_type(query),
        PRECISION=dot_precision(dot_type(query)),
        num_warps=warps,
        num_stages=2,
    )
    return merge(parts, lse, query.dtype)


def _configuration(query: Tensor, group: int) -> tuple[int, int, int]:
    """Rows of a tile (sequences times heads), cached rows in a step, and warps.

    Hopper's products start at 64 rows; the only other size is 16, for what fits it. With a head of
    128, eight warps keep a full tile from spilling on sm_80 and sm_120. float32 products run on
    the ordinary cores: from 32 rows on they spill, and with four warps Triton 3.6 keeps 8 to 16
    bytes on the stack on sm_90.
    """
    half, width = query.element_size() == 2, query.shape[2]
    tile = padded(group, 64 if half and len(query) * group > 16 else 16)
    block = 16 if not half else 64 if width <= 128 else 32
    small = width <= 64 or (half and width <= 128 and tile <= 32)
    return tile, block, 4 if small else 8


# Sizes and the alignment of tables differ from step to step and must not cause a new compilation.
@triton.jit(
    do_not_specialize=["rows", "nodes", "max_pages"],
    do_not_specialize_on_alignment=["page_table", "lengths", "node_rows"],
)
def _attend_nodes(
    query,
    key_pages,
    value_pages,
    page_table,
    lengths,
    node_rows,
    parts,
    lse,
    rows,
    nodes,
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
    NODES: tl.constexpr,
    WIDTH: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    head, split = tl.program_id(1), tl.program_id(2)
    start = tl.program_id(0) * CHUNK
    stop = tl.minimum(start + CHUNK, rows)
    m, c = tl.arange(0, TILE), tl.arange(0, WIDTH)
    row = start + m // GROUP
    own = row < stop
    place = row * heads + head * GROUP + m % GROUP
    n = tl.arange(0, NODES)
    begins = tl.load(node_rows + 2 * n, n < nodes, other=0)
    ends = tl.load(node_rows + 2 * n + 1, n < nodes, other=0)
    covers = (n < nodes) & (begins < stop) & (ends > start)
    blocks = tl.sum(tl.cdiv(tl.load(lengths + n, covers, other=0).to(tl.int32), BLOCK))
    if (split > 0) & (split >= blocks):  # the first split handles rows that no node covers
        store_empty(lse, split * rows * heads + place, own)
        return
    splits = tl.num_programs(2)
    tile = tl.load(
        query + place[:, None] * width + c[None, :], own[:, None] & (c < width)[None, :], other=0
    ).to(DOT)
    top = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    pooled = tl.zeros([TILE, WIDTH], tl.float32)
    node = tl.min(tl.where(covers, n, NODES))
    dealt = 0
    while node < NODES:
        length = tl.load(lengths + node).to(tl.int32)
        covered = (row >= tl.load(node_rows + 2 * node)) & (row < tl.load(node_rows + 2 * node + 1))
        limits = tl.where(own & covered, length, 0)
        # Programs take blocks in turn across the nodes, so that all have about as many.
        turn = (split + splits - dealt % splits) % splits
        for first in range(turn * BLOCK, length, splits * BLOCK):
            top, total, pooled = attend(
                tile,
                top,
                total,
                pooled,
                key_pages + head * head_stride,
                value_pages + head * head_stride,
                page_table + node * max_pages,
                first,
                length,
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
        dealt += tl.cdiv(length, BLOCK)
        node = tl.min(tl.where(covers & (n > node), n, NODES))
    store_part(parts, lse, top, total, pooled, split * rows * heads + place, width, own, WIDTH)
