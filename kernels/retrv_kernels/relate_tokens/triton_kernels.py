"""The kernels that `triton_impl` launches.

A pair is a candidate and a query. Shapes and names are those of `op.py`. Where a query's rows are
the last dimension, they are padded to ``span``.
"""

# mypy: disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _dots(
    keys,
    scales,
    query_keys,
    row,
    rows,
    asked,
    asks,
    head,
    heads,
    head_width,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Scores ``[ROWS, BLOCK]`` of candidate rows after ``row`` and query rows after ``asked``."""
    i, j = row + tl.arange(0, ROWS), asked + tl.arange(0, BLOCK)
    scores = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(0, head_width, STEP):
        c = first + tl.arange(0, STEP)
        at = head * head_width + c
        key = tl.load(
            keys + i[:, None] * (heads * head_width) + at[None, :],
            (i < rows)[:, None] & (c < head_width)[None, :],
            other=0,
        ).to(DOT)
        ask = tl.load(
            query_keys + j[:, None] * (heads * head_width) + at[None, :],
            (j < asks)[:, None] & (c < head_width)[None, :],
            other=0,
        ).to(DOT)
        scores = tl.dot(key, tl.trans(ask), scores, input_precision=PRECISION)
    if scales is not None:
        scores *= tl.load(scales + i, i < rows, other=0)[:, None]
    return tl.where((j < asks)[None, :], scores, float("-inf"))


@triton.jit
def score_rows(
    keys,
    scales,
    query_keys,
    offsets,
    query_offsets,
    candidate,
    query,
    places,
    relevance,
    products,
    scores,
    factors,
    lse,
    heads,
    pool,
    head_width,
    span,
    inverse_width,
    eps,
    PROGRAMS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
    POOL: tl.constexpr,
    STEP: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Scores, RMS factors and log-sum-exps of a pair's candidate rows."""
    pair = tl.program_id(0)
    item, number = tl.load(candidate + pair), tl.load(query + pair).to(tl.int64)
    begin, place = tl.load(offsets + item).to(tl.int64), tl.load(places + pair).to(tl.int64)
    rows = (tl.load(offsets + item + 1) - begin).to(tl.int32)
    asked = tl.load(query_offsets + number).to(tl.int64)
    asks = (tl.load(query_offsets + number + 1) - asked).to(tl.int32)
    keys += begin * heads * head_width
    query_keys += asked * heads * head_width
    relevance += asked * heads * pool
    if scales is not None:
        scales += begin
    blocks = tl.cdiv(asks, BLOCK)
    size = heads * span
    if asks == 0:
        return
    e, h, k = tl.arange(0, HEADS), tl.arange(0, POOL), tl.arange(0, BLOCK)
    for row in range(tl.program_id(1) * ROWS, rows, PROGRAMS * ROWS):
        row_lse = tl.zeros([ROWS, HEADS], tl.float32)
        for head in range(0, heads):
            top = tl.full([ROWS], float("-inf"), tl.float32)
            total = tl.zeros([ROWS], tl.float32)
            for j in range(0, asks, BLOCK):
                s = _dots(
                    keys, scales, query_keys, row, rows, j, asks, head, heads, head_width,
                    ROWS, BLOCK, STEP, DOT, PRECISION,
                )  # fmt: skip
                highest = tl.maximum(top, tl.max(s, 1))
                total = total * tl.exp(top - highest) + tl.sum(tl.exp(s - highest[:, None]), 1)
                top = highest
            row_lse = tl.where((e == head)[None, :], (top + tl.log(total))[:, None], row_lse)
        relation = tl.zeros([ROWS, POOL], tl.float32)
        squares = tl.zeros([ROWS], tl.float32)
        for b in range(0, heads * blocks):
            head, j = b // blocks, (b % blocks) * BLOCK
            own = tl.sum(tl.where((e == head)[None, :], row_lse, 0), 1)
            s = _dots(
                keys, scales, query_keys, row, rows, j, asks, head, heads, head_width,
                ROWS, BLOCK, STEP, DOT, PRECISION,
            )  # fmt: skip
            p = tl.exp(s - own[:, None])
            u = tl.load(
                relevance + ((j + k) * heads + head)[:, None] * pool + h[None, :],
                (j + k < asks)[:, None] & (h < pool)[None, :],
                other=0,
            )
            relation = tl.dot(p, u, relation, input_precision=PRECISION)
            if products is not None:
                # G is symmetric: a block off the diagonal counts twice.
                for b2 in range(0, b + 1):
                    head2, j2 = b2 // blocks, (b2 % blocks) * BLOCK
                    own2 = tl.sum(tl.where((e == head2)[None, :], row_lse, 0), 1)
                    s2 = _dots(
                        keys, scales, query_keys, row, rows, j2, asks, head2, heads, head_width,
                        ROWS, BLOCK, STEP, DOT, PRECISION,
                    )  # fmt: skip
                    p2 = tl.exp(s2 - own2[:, None])
                    line = (number * size + head * span + j + k)[:, None] * size
                    g = tl.load(products + line + (head2 * span + j2 + k)[None, :])
                    twice = tl.where(b2 < b, 2.0, 1.0)
                    part = tl.dot(p, g, input_precision=PRECISION)
                    squares += twice * tl.sum(part * p2, 1)
        i = row + tl.arange(0, ROWS)
        factor = tl.full([ROWS], 1.0, tl.float32)
        if products is not None:
            # Rounding may leave a sum of squares slightly below 0.
            factor = tl.rsqrt(tl.maximum(squares, 0) * inverse_width + eps)
        tl.store(factors + place + i, factor, i < rows)
        tl.store(
            scores + (place + i)[:, None] * pool + h[None, :],
            relation * factor[:, None],
            (i < rows)[:, None] & (h < pool)[None, :],
        )
        tl.store(
            lse + (place + i)[:, None] * heads + e[None, :],
            row_lse,
            (i < rows)[:, None] & (e < heads)[None, :],
        )


@triton.jit
def weigh_queries(
    keys,
    scales,
    query_keys,
    offsets,
    query_offsets,
    candidate,
    query,
    places,
    scores,
    factors,
    lse,
    weights,
    heads,
    pool,
    head_width,
    span,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    POOL: tl.constexpr,
    STEP: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Weights of a block of query rows and one head, summed over a pair's candidate rows."""
    pair, b = tl.program_id(0), tl.program_id(1)
    blocks = span // BLOCK
    head, j = b // blocks, (b % blocks) * BLOCK
    item, number = tl.load(candidate + pair), tl.load(query + pair)
    begin, place = tl.load(offsets + item).to(tl.int64), tl.load(places + pair).to(tl.int64)
    rows = (tl.load(offsets + item + 1) - begin).to(tl.int32)
    asked = tl.load(query_offsets + number).to(tl.int64)
    asks = (tl.load(query_offsets + number + 1) - asked).to(tl.int32)
    if j >= asks:
        return
    keys += begin * heads * head_width
    query_keys += asked * heads * head_width
    if scales is not None:
        scales += begin
    h, k = tl.arange(0, POOL), tl.arange(0, BLOCK)
    top = tl.full([POOL], float("-inf"), tl.float32)
    total = tl.zeros([POOL], tl.float32)
    pooled = tl.zeros([POOL, BLOCK], tl.float32)
    for row in range(0, rows, ROWS):
        i = row + tl.arange(0, ROWS)
        there = (i < rows)[None, :]
        score = tl.load(
            scores + (place + i)[None, :] * pool + h[:, None],
            there & (h < pool)[:, None],
            other=0,
        )
        score = tl.where(there, score, float("-inf"))
        highest = tl.maximum(top, tl.max(score, 1))
        kept = tl.exp(top - highest)
        a = tl.exp(score - highest[:, None])
        total = total * kept + tl.sum(a, 1)
        a *= tl.load(factors + place + i, i < rows, other=0)[None, :]
        own = tl.load(lse + (place + i) * heads + head, i < rows, other=0)
        s = _dots(
            keys, scales, query_keys, row, rows, j, asks, head, heads, head_width,
            ROWS, BLOCK, STEP, DOT, PRECISION,
        )  # fmt: skip
        p = tl.exp(s - own[:, None])
        pooled = tl.dot(a, p, pooled * kept[:, None], input_precision=PRECISION)
        top = highest
    pooled /= tl.where(total > 0, total, 1)[:, None]
    line = (pair.to(tl.int64) * pool + h) * heads + head
    tl.store(
        weights + line[:, None] * span + (j + k)[None, :],
        pooled,
        (h < pool)[:, None],
    )


@triton.jit
def combine(
    weights,
    values,
    query_offsets,
    query,
    out,
    heads,
    pool,
    span,
    width,
    POOL: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Tokens of a pair: the weights times the folded values."""
    pair = tl.program_id(0).to(tl.int64)
    number = tl.load(query + pair)
    asked = tl.load(query_offsets + number).to(tl.int64)
    asks = (tl.load(query_offsets + number + 1) - asked).to(tl.int32)
    h, k = tl.arange(0, POOL), tl.arange(0, BLOCK)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    values += asked * heads * width
    combined = tl.zeros([POOL, COLUMNS], tl.float32)
    for head in range(0, heads):
        for first in range(0, asks, BLOCK):
            j = first + k
            line = (pair * pool + h) * heads + head
            w = tl.load(weights + line[:, None] * span + j[None, :], (h < pool)[:, None], other=0)
            v = tl.load(
                values + (j * heads + head)[:, None] * width + c[None, :],
                (j < asks)[:, None] & (c < width)[None, :],
                other=0,
            ).to(tl.float32)
            combined = tl.dot(w, v, combined, input_precision=PRECISION)
    tl.store(
        out + (pair * pool + h)[:, None] * width + c[None, :],
        combined,
        (h < pool)[:, None] & (c < width)[None, :],
    )
