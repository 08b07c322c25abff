"""Inputs on which every implementation of an op must agree with float64; tests and bench run them.

A tolerance belongs to an op and a dtype. It bounds the largest error against the reference in
float64 on the same rounded inputs, relative to the largest expected value: it is what the
arithmetic may lose, not what the storage lost.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from retrv_kernels import ops, registry
from retrv_kernels.ragged import quantize
from retrv_kernels.splice_features.op import Span

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    """One input of an op.

    Args:
        arguments: makes the public function's arguments with floats of a dtype; repeatable.
        dtypes: that it is run in.
        small: for Triton's interpreter, which needs seconds for what a GPU does in microseconds.
        flops: floating-point operations of the equation, a product and a sum counting two.
        shape: sizes by their name, for tables and plots.
    """

    op: str
    name: str
    arguments: Callable[[torch.dtype], dict[str, Any]]
    dtypes: tuple[torch.dtype, ...] = FLOATS
    small: bool = False
    flops: int = 0
    shape: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"


TOLERANCE: Mapping[str, Mapping[torch.dtype, float]] = {
    "pool_tokens": {torch.float32: 2e-5, torch.float16: 2e-5, torch.bfloat16: 2e-5},
    "relate_tokens": {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2},
    "splice_features": {torch.float32: 0, torch.float16: 0, torch.bfloat16: 0},
    "paged_attention": {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2},
    "shared_prefix_attention": {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2},
}


def expected_of(op: str, arguments: Mapping[str, Any]) -> Any:
    """The reference's result, in float64 where arithmetic can lose anything."""
    wide = dict(arguments)
    if op != "splice_features":  # a gather: exact in any dtype
        for name, value in arguments.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                wide[name] = value.double()
    with patch.dict(os.environ, {registry.OVERRIDE: "reference"}):
        return getattr(ops, op)(**wide)


def error_of(out: Any, expected: Any) -> float:
    """Largest error relative to the largest expected value, over one result or several.

    Infinite where a value is NaN that should not be, or shapes differ: no tolerance lets it pass.
    """
    if not isinstance(out, Tensor):
        return max(error_of(*pair) for pair in zip(out, expected, strict=True))
    if out.shape != expected.shape:
        return float("inf")
    if out.numel() == 0:
        return 0.0
    error, largest = (out.double() - expected.double()).abs().max(), expected.double().abs().max()
    if error == 0:
        return 0.0
    return float(error / largest) if error.isfinite() and largest > 0 else float("inf")


def seeded(*numbers: int) -> torch.Generator:
    """A generator that depends on a case's sizes alone."""
    return torch.Generator().manual_seed(hash(numbers) % 2**31)


def offsets(lengths: Sequence[int]) -> Tensor:
    """``[m + 1]`` of lengths."""
    return torch.tensor([0, *lengths]).cumsum(0)


def _rows(rows: Tensor, dtype: torch.dtype, int8: bool) -> tuple[Tensor, Tensor | None]:
    return quantize(rows) if int8 else (rows.to(dtype), None)


def pool_tokens(
    name: str,
    lengths: Sequence[int],
    width: int,
    heads: int = 4,
    *,
    magnitude: float = 1.0,
    eps: float = 1e-6,
    int8: bool = False,
    **options: Any,
) -> Case:
    """Items of some lengths."""
    total = sum(lengths)

    def arguments(dtype: torch.dtype) -> dict[str, Any]:
        generator = seeded(total, width, heads)
        features = magnitude * torch.randn(total, width, generator=generator)
        rows, scales = _rows(features, dtype, int8)
        queries = torch.randn(heads, width, generator=generator) * (4 / width**0.5)
        return {
            "features": rows,
            "cu_seqlens": offsets(lengths),
            "folded_queries": queries.to(dtype),
            "scales": scales,
            "eps": eps,
        }

    return Case(
        "pool_tokens",
        name,
        arguments,
        (torch.float32,) if int8 else FLOATS,
        flops=total * width * (4 * heads + 2),
        shape={"K": len(lengths), "rows": max(lengths, default=0), "d": width, "heads": heads},
        **options,
    )


def relate_tokens(
    name: str,
    lengths: Sequence[int],
    queries: Sequence[int],
    key_width: int,
    width: int,
    heads: tuple[int, int] = (8, 4),
    *,
    pairs: Sequence[tuple[int, int]] | None = None,
    magnitude: float = 1.0,
    sharpness: float = 2.0,
    eps: float | None = 1e-6,
    int8: bool = False,
    **options: Any,
) -> Case:
    """Candidates of some lengths and queries of some lengths; all pairs unless said otherwise.

    Args:
        heads: of ATT₂ and of ATT₁.
        magnitude: of the keys; the query keys are divided by it.
        sharpness: standard deviation of ATT₂'s scores.
    """
    total, asked, (relate, pool) = sum(lengths), sum(queries), heads
    if pairs is None:
        pairs = [(c, q) for q in range(len(queries)) for c in range(len(lengths))]

    def arguments(dtype: torch.dtype) -> dict[str, Any]:
        generator = seeded(total, asked, key_width, width)
        keys = magnitude * torch.randn(total, key_width, generator=generator)
        keys, scales = _rows(keys, dtype, int8)
        spread = sharpness / magnitude / (key_width / relate) ** 0.5
        query_keys = spread * torch.randn(asked, key_width, generator=generator)
        values = torch.randn(asked, relate, width, generator=generator)
        pooled = torch.randn(pool, width, generator=generator) * (4 / width**0.5)
        return {
            "relation_keys": keys,
            "cu_seqlens": offsets(lengths),
            "query_keys": query_keys.to(dtype),
            "cu_queries": offsets(queries),
            "folded_values": values.to(dtype),
            "folded_queries": pooled.to(dtype),
            "candidate": torch.tensor([c for c, _ in pairs], dtype=torch.long),
            "query": torch.tensor([q for _, q in pairs], dtype=torch.long),
            "scales": scales,
            "eps": eps,
        }

    flops = 0
    for c, q in pairs:
        weights = queries[q] * relate
        norm = 0 if eps is None else weights * (weights + 1)  # V Vᵀ is symmetric
        flops += lengths[c] * (2 * queries[q] * key_width + 4 * pool * weights + norm)
        flops += 2 * pool * weights * width
    return Case(
        "relate_tokens",
        name,
        arguments,
        (torch.float32,) if int8 else FLOATS,
        flops=flops,
        shape={
            "K": len(lengths),
            "rows": max(lengths, default=0),
            "query rows": max(queries, default=0),
            "w": key_width,
            "d": width,
        },
        **options,
    )


def splice_features(
    name: str,
    stores: Sequence[tuple[int, bool]],
    spans: Sequence[Span],
    width: int,
    *,
    page_size: int = 16,
    pages: tuple[int, int] = (4, 64),
    **options: Any,
) -> Case:
    """Stores of (rows, int8?), the first one the embedding table."""

    def arguments(dtype: torch.dtype) -> dict[str, Any]:
        generator = seeded(len(spans), width, page_size)
        made = [
            _rows(torch.randn(rows, width, generator=generator), dtype, int8)
            for rows, int8 in stores
        ]
        count = pages[0] * pages[1]
        return {
            "stores": [rows for rows, _ in made],
            "spans": list(spans),
            "page_table": torch.randperm(count, generator=generator).view(pages).int(),
            "page_size": page_size,
            "scales": [scales for _, scales in made],
        }

    rows = sum(span.length for span in spans)
    return Case(
        "splice_features",
        name,
        arguments,
        shape={"spans": len(spans), "rows": rows, "d": width},
        **options,
    )


def _cache(
    lengths: Sequence[int], heads: int, width: int, page_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Pages of keys and values and their table; what no sequence owns is NaN."""
    needed = [-(-length // page_size) for length in lengths]
    count = sum(needed) + 1
    order = torch.randperm(count, generator=generator).int()
    table = torch.full((len(lengths), max(needed, default=0) + 1), count - 1, dtype=torch.int32)
    # A head's rows of a page lie together in memory: see paged_attention.
    pages = torch.full((2, count, heads, page_size, width), torch.nan).transpose(2, 3)
    taken = 0
    for i, length in enumerate(lengths):
        own = order[taken : taken + needed[i]]
        taken += needed[i]
        table[i, : len(own)] = own
        rows = pages[:, own.long()].flatten(1, 2)
        rows[:, :length] = torch.randn(2, length, heads, width, generator=generator)
        pages[:, own.long()] = rows.unflatten(1, (-1, page_size))
    return pages[0], pages[1], table


def paged_attention(
    name: str,
    lengths: Sequence[tuple[int, int]],
    heads: tuple[int, int],
    width: int,
    *,
    page_size: int = 16,
    magnitude: float = 1.0,
    **options: Any,
) -> Case:
    """Sequences of (new rows, all cached rows); heads of query and cache."""
    new = [n for n, _ in lengths]
    kv = [length for _, length in lengths]

    def arguments(dtype: torch.dtype) -> dict[str, Any]:
        generator = seeded(sum(new), sum(kv), *heads, width)
        keys, values, table = _cache(kv, heads[1], width, page_size, generator)
        query = magnitude * torch.randn(sum(new), heads[0], width, generator=generator)
        return {
            "query": query.to(dtype),
            "key_pages": keys.to(dtype),
            "value_pages": values.to(dtype),
            "page_table": table,
            "cu_seqlens": offsets(new).int(),
            "kv_lens": torch.tensor(kv, dtype=torch.int32),
        }

    pairs = sum(n * (length - n) + n * (n + 1) // 2 for n, length in lengths)
    return Case(
        "paged_attention",
        name,
        arguments,
        flops=4 * heads[0] * width * pairs,
        shape={
            "sequences": len(lengths),
            "new": max(new, default=0),
            "cached": max(kv, default=0),
            "heads": heads[0],
            "kv heads": heads[1],
            "d_h": width,
        },
        **options,
    )


def shared_prefix_attention(
    name: str,
    nodes: Sequence[tuple[int, tuple[int, int]]],
    sequences: int,
    heads: tuple[int, int],
    width: int,
    *,
    page_size: int = 16,
    **options: Any,
) -> Case:
    """Nodes of (cached rows, (first sequence, behind the last)); heads of query and cache."""
    lengths = [length for length, _ in nodes]

    def arguments(dtype: torch.dtype) -> dict[str, Any]:
        generator = seeded(sum(lengths), sequences, *heads, width)
        keys, values, table = _cache(lengths, heads[1], width, page_size, generator)
        query = torch.randn(sequences, heads[0], width, generator=generator)
        return {
            "query": query.to(dtype),
            "key_pages": keys.to(dtype),
            "value_pages": values.to(dtype),
            "page_table": table,
            "node_lens": torch.tensor(lengths, dtype=torch.int32),
            "node_rows": torch.tensor([own for _, own in nodes], dtype=torch.int32).reshape(-1, 2),
        }

    pairs = sum(length * (end - first) for length, (first, end) in nodes)
    return Case(
        "shared_prefix_attention",
        name,
        arguments,
        flops=4 * heads[0] * width * pairs,
        shape={
            "sequences": sequences,
            "shared": max(lengths, default=0),
            "heads": heads[0],
            "kv heads": heads[1],
            "d_h": width,
        },
        **options,
    )


_WIDTHS = (1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65, 897)  # around vectors and their tails
_WRAPPED = (
    Span(0, 5, 1, 40, 0, 2, 30),
    Span(1, 3, 12, 41, 4, 2, 31),
    Span(0, 6, 1, 45, 0, 2, 43),
    Span(0, 5, 1, 7, 0, 0, 15),
    Span(2, 0, 9, 8, 3, 0, 16),
    Span(0, 9, 3, 11, 0, 0, 25),
)
_NESTED = ((37, (0, 5)), (20, (0, 3)), (33, (3, 5)), (1, (0, 1)), (16, (1, 2)), (5, (2, 3)))

CASES: tuple[Case, ...] = (
    pool_tokens("no_items", [], 40, small=True),
    pool_tokens("items_without_rows", [0, 3, 0, 5, 0], 40, small=True),
    pool_tokens("one_row", [1], 64, small=True),
    pool_tokens("one_candidate", [81], 192, small=True),
    *(pool_tokens(f"width_{width}", [3, 5], width, small=True) for width in _WIDTHS),
    *(pool_tokens(f"heads_{heads}", [9, 2], 72, heads, small=True) for heads in (1, 2, 3, 7)),
    pool_tokens("candidates_200", [1 + 7 * i % 13 for i in range(200)], 48),
    pool_tokens("magnitude_1e4", [7, 30], 96, magnitude=1e4, small=True),
    pool_tokens("below_eps", [7, 3], 96, magnitude=1e-3, eps=1e-5, small=True),
    pool_tokens("eps_0", [7, 30, 1], 96, eps=0.0, small=True),
    pool_tokens("int8", [7, 30, 1], 200, int8=True, small=True),
    pool_tokens("ragged", [81, 1, 256, 37], 320, small=True),
    relate_tokens("no_pairs", [3, 4], [5], 16, 40, pairs=[], small=True),
    relate_tokens("empty_sides", [3, 0, 4], [5, 0], 16, 40, small=True),
    relate_tokens("one_row", [1], [1], 16, 40, small=True),
    relate_tokens("text_query", [81, 9, 40], [8], 64, 192, small=True),
    relate_tokens("picture_query", [30, 7], [256], 64, 96),
    relate_tokens("without_norm", [30, 7], [19], 64, 96, eps=None, small=True),
    relate_tokens("odd_sizes", [13, 30, 7], [3, 11], 21, 45, (3, 5), small=True),
    relate_tokens(
        "chosen_pairs", [5, 9, 2], [4, 7], 24, 40, pairs=[(2, 1), (0, 0), (2, 0), (1, 1)]
    ),
    relate_tokens("candidates_200", [1 + 7 * i % 13 for i in range(200)], [6], 16, 32),
    relate_tokens("magnitude_1e4", [30, 7], [9], 32, 48, magnitude=1e4, small=True),
    relate_tokens("sharp", [30, 7], [9], 32, 48, sharpness=30.0, small=True),
    relate_tokens("int8", [30, 7], [9], 32, 48, int8=True, small=True),
    splice_features("no_spans", [(12, False)], [], 40, small=True),
    splice_features("one_row", [(12, False)], [Span(0, 3, 1, 9, 0, 1, 700)], 7, small=True),
    splice_features("stores", [(12, False), (30, False), (9, True)], _WRAPPED, 33, small=True),
    splice_features(
        "wide", [(12, False), (300, True), (9, False)], _WRAPPED, 2048, page_size=5, small=True
    ),
    paged_attention("no_sequences", [], (4, 2), 16, small=True),
    paged_attention("nothing_new", [(0, 7), (1, 20)], (4, 2), 16, small=True),
    paged_attention("decode", [(1, 1), (1, 16), (1, 17), (1, 100)], (4, 2), 32, small=True),
    paged_attention("prefill", [(1, 1), (33, 33), (5, 5)], (4, 4), 16, small=True),
    paged_attention("extend", [(7, 40), (1, 19), (20, 23)], (6, 2), 24, page_size=4, small=True),
    paged_attention("page_of_one", [(3, 9), (2, 2)], (3, 3), 64, page_size=1, small=True),
    paged_attention("odd_width", [(3, 9), (70, 131)], (7, 1), 33, page_size=7, small=True),
    paged_attention("magnitude_1e4", [(3, 90)], (4, 2), 64, magnitude=1e4, small=True),
    paged_attention("sequences_200", [(1, 1 + 7 * i % 53) for i in range(200)], (3, 3), 64),
    shared_prefix_attention("no_sequences", [], 0, (4, 2), 16, small=True),
    shared_prefix_attention("not_covered", [(9, (1, 2))], 3, (4, 2), 16, small=True),
    shared_prefix_attention(
        "nodes_without_rows", [(0, (0, 2)), (5, (0, 2))], 2, (4, 2), 16, small=True
    ),
    shared_prefix_attention("nested", _NESTED, 5, (6, 2), 32, small=True),
    shared_prefix_attention(
        "long", [(517, (0, 8)), *((9, (i, i + 1)) for i in range(8))], 8, (8, 2), 64
    ),
    shared_prefix_attention("odd_sizes", _NESTED, 5, (3, 3), 33, page_size=3, small=True),
    shared_prefix_attention("sequences_200", [(40, (0, 200)), (3, (100, 101))], 200, (3, 3), 64),
)
