"""R in tiles of candidate rows: `attend_rows` weighs values, a product projects them."""

# mypy: disallow-incomplete-defs=False

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from retrv_kernels.ragged import widen
from retrv_kernels.relate_tokens.forms import Arguments
from retrv_kernels.relate_tokens.triton_kernels import _dots
from retrv_kernels.triton_common import dot_precision, dot_type, padded

# Rows of a tile: at 3B's sizes its weighted values and R take 12 bytes · 4,096 · 2,048 = 100 MB.
TILE = 4096


def attend(given: Arguments, lse: Tensor, options: dict[str, Any]) -> Iterator[tuple[int, Tensor]]:
    """First rows of the tiles, and their rows ``[n, d]`` of R in float32, before the norm.

    Rows that are no candidate's give anything: their ``lse`` was not written.

    Args:
        lse: log-sum-exps of ATT₂'s scores, ``[n, E]``.
        options: compile-time options of the kernels that compute scores.
    """
    keys, values = given.relation_keys, given.query_values
    heads, depth = values.shape[1:]
    projection = given.output.to(values.dtype).flatten(1).T
    dot = dot_type(values)
    columns = min(padded(depth, 16), 64)
    weighed = values.new_empty((min(TILE, len(keys)), heads * depth))
    for first in range(0, len(keys), TILE):
        rows = min(TILE, len(keys) - first)
        grid = triton.cdiv(rows, options["ROWS"]), heads, triton.cdiv(depth, columns)
        attend_rows[grid](
            keys,
            given.scales,
            given.query_keys,
            given.cu_queries,
            lse,
            values,
            weighed,
            first,
            len(keys),
            heads,
            keys.shape[1] // heads,
            depth,
            COLUMNS=columns,
            VALUE_DOT=dot,
            VALUE_PRECISION=dot_precision(dot),
            **options,
        )
        yield first, product(weighed[None, :rows], projection[None])[0]


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a b`` of batches in float32, also for half-precision operands, whose range it can exceed.

    Products of half-precision numbers are exact in float32; tensor cores compute them so on a GPU.
    Products of float32 are PyTorch's: `torch.backends.cuda.matmul` can allow TF32 (not by default).
    """
    if a.is_cuda and a.element_size() == 2:
        return torch.bmm(a, b, out_dtype=torch.float32)
    return widen(a) @ widen(b)


@triton.jit(do_not_specialize=["first", "rows"])
def attend_rows(
    keys,
    scales,
    query_keys,
    query_offsets,
    lse,
    values,
    weighed,
    first,
    rows,
    heads,
    head_width,
    depth,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    VALUE_DOT: tl.constexpr,
    VALUE_PRECISION: tl.constexpr,
):
    """Values weighed for a block of candidate rows and one head, by the only query's weights."""
    head = tl.program_id(1)
    asks = tl.load(query_offsets + 1).to(tl.int32)
    row = first + tl.program_id(0) * ROWS
    i, k = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    c = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    there = row + i < rows
    keys += row.to(tl.int64) * heads * head_width
    if scales is not None:
        scales += row
    own = tl.load(lse + (row + i) * heads + head, there, other=0)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for j in range(0, asks, BLOCK):
        s = _dots(
            keys, scales, query_keys, 0, rows - row, j, asks, head, heads, head_width,
            ROWS, BLOCK, STEP, DOT, PRECISION,
        )  # fmt: skip
        p = tl.exp(s - own[:, None])
        v = tl.load(
            values + ((j + k) * heads + head)[:, None] * depth + c[None, :],
            (j + k < asks)[:, None] & (c < depth)[None, :],
            other=0,
        )
        total = tl.dot(p.to(VALUE_DOT), v.to(VALUE_DOT), total, input_precision=VALUE_PRECISION)
    place = (row - first + i).to(tl.int64) * heads + head
    tl.store(
        weighed + place[:, None] * depth + c[None, :],
        total.to(weighed.dtype.element_ty),
        there[:, None] & (c < depth)[None, :],
    )
