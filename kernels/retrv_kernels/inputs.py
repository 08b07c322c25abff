"""Makes inputs of the ops, of any sizes: for the cases that must agree, and for the benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

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


def seeded(*numbers: int) -> torch.Generator:
    """A generator that depends on a case's sizes alone."""
    return torch.Generator().manual_seed(hash(numbers) % 2**31)


def offsets(lengths: Sequence[int]) -> Tensor:
    """``[m + 1]`` of lengths."""
    return torch.tensor([0, *lengths]).cumsum(0)


def linear(
    name: str,
    rows: int,
    width: int,
    depth: int,
    *,
    bias: bool = True,
    int8: bool = False,
    **options: Any,
) -> Case:
    """Some rows of x against weights of the same dtype, or of int8."""

    def arguments(dtype: torch.dtype) -> dict[str, Any]:
        generator = seeded(rows, width, depth)
        x = torch.randn(rows, depth, generator=generator)
        weight, scales = _rows(torch.randn(width, depth, generator=generator), dtype, int8)
        offset = torch.randn(width, generator=generator).to(dtype) if bias else None
        return {"x": x.to(dtype), "weight": weight, "bias": offset, "scales": scales}

    return Case(
        "linear",
        name,
        arguments,
        (torch.float32,) if int8 else FLOATS,
        flops=2 * rows * width * depth,
        shape={"rows": rows, "out": width, "in": depth},
        **options,
    )


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


def add_rms_norm(
    name: str, rows: int, width: int, *, delta: bool = True, magnitude: float = 1.0, **options: Any
) -> Case:
    """Rows of a residual stream, and what is added to them."""

    def arguments(dtype: torch.dtype) -> dict[str, Any]:
        generator = seeded(rows, width)
        x, added = magnitude * torch.randn(2, rows, width, generator=generator)
        weight = torch.randn(width, generator=generator).to(dtype)
        return {"x": x.to(dtype), "delta": added.to(dtype) if delta else None, "weight": weight}

    shape = {"rows": rows, "d": width}
    return Case("add_rms_norm", name, arguments, flops=5 * rows * width, shape=shape, **options)


def silu_product(
    name: str, rows: int, width: int, *, magnitude: float = 3.0, **options: Any
) -> Case:
    """Rows of gates and what they let through, of that width each."""

    def arguments(dtype: torch.dtype) -> dict[str, Any]:
        values = torch.randn(rows, 2 * width, generator=seeded(rows, width))
        return {"gate_up": (magnitude * values).to(dtype)}

    shape = {"rows": rows, "f": width}
    return Case("silu_product", name, arguments, flops=5 * rows * width, shape=shape, **options)


def rotate_to_pages(
    name: str,
    rows: int,
    heads: tuple[int, int],
    width: int,
    *,
    page_size: int = 16,
    norms: bool = False,
    integers: torch.dtype = torch.int64,
    **options: Any,
) -> Case:
    """New rows for slots here and there; heads of query and cache."""

    def arguments(dtype: torch.dtype) -> dict[str, Any]:
        generator = seeded(rows, *heads, width)
        pages = -(-rows // page_size) + 2
        cache = torch.randn(2, pages, heads[1], page_size, width, generator=generator).to(dtype)
        keys, values = cache.transpose(2, 3)
        qkv = torch.randn(rows, heads[0] + 2 * heads[1], width, generator=generator)
        angles = torch.arange(rows)[:, None, None] * 10.0 ** -torch.linspace(0, 4, width // 2)
        sin, cos = angles.sin(), angles.cos()
        slots = torch.randperm(pages * page_size, generator=generator)[:rows]
        weights = torch.randn(2, width, generator=generator).to(dtype)
        return {
            "qkv": qkv.to(dtype),
            "cos": torch.cat([cos, cos], -1).to(dtype),
            "sin": torch.cat([-sin, sin], -1).to(dtype),
            "key_pages": keys,
            "value_pages": values,
            "slots": slots.to(integers),
            "heads": heads[0],
            "q_norm": weights[0] if norms else None,
            "k_norm": weights[1] if norms else None,
        }

    return Case(
        "rotate_to_pages",
        name,
        arguments,
        flops=4 * rows * sum(heads) * width,
        shape={"rows": rows, "heads": heads[0], "kv heads": heads[1], "d_h": width},
        **options,
    )
