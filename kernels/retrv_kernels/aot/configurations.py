"""Calls to compile: the shapes of the 3B and 7B models, and float32 for each op."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

HALF, SINGLE, BYTE = torch.bfloat16, torch.float32, torch.int8
CANDIDATES, ROWS = 50, 256


@dataclass(frozen=True)
class Configuration:
    """A call of an op, with tensors that have shapes but no storage.

    Args:
        arguments: arguments of `torch.ops.retrv_kernels.<op>`.
        least: bytes that any implementation moves: operands and results once each.
        gathered: bytes among them that are rows of larger stores.
        quick: whether CI compiles it; true for one configuration of each op.
    """

    op: str
    name: str
    arguments: tuple[Any, ...]
    least: int
    gathered: int = 0
    quick: bool = False


def configurations() -> tuple[Configuration, ...]:
    """All configurations, op by op."""
    return (
        _pool("3B", 2048, HALF, quick=True),
        _pool("3B int8", 2048, BYTE),
        _pool("3B float32", 2048, SINGLE),
        _pool("7B", 3584, HALF),
        _pool("7B int8", 3584, BYTE),
        _relate("3B picture query", 2048, 64, HALF, quick=True),
        _relate("3B text query", 2048, 8, HALF),
        _relate("3B int8", 2048, 64, BYTE),
        _relate("3B float32", 2048, 64, SINGLE),
        _relate("7B picture query", 3584, 256, HALF),
        _relate("3B page query", 2048, 1280, HALF, quick=True),
        _relate("3B page query int8", 2048, 1280, BYTE),
        _relate("3B page query float32", 2048, 1280, SINGLE),
        _relate("7B page query", 3584, 1280, HALF),
        _splice("3B", 2048, quick=True),
        _splice("7B", 3584),
        _paged("3B decode", 8, 8, (16, 2), HALF, quick=True),
        _paged("3B prefill", 4096, 2, (16, 2), HALF),
        _paged("7B prefill", 4096, 2, (28, 4), HALF),
        _paged("3B decode float32", 8, 8, (16, 2), SINGLE),
        _paged("3B prefill float32", 4096, 2, (16, 2), SINGLE),
        _shared("3B", 8, (16, 2), HALF, quick=True),
        _shared("7B", 8, (28, 4), HALF),
        _shared("3B float32", 8, (16, 2), SINGLE),
        _norm("3B", 2048, HALF, quick=True),
        _norm("7B", 3584, HALF),
        _norm("3B float32", 2048, SINGLE),
        _rotate("3B", (16, 2), HALF, quick=True),
        _rotate("7B", (28, 4), HALF),
        _rotate("8B with norms", (32, 8), HALF, norms=True),
        _rotate("3B float32", (16, 2), SINGLE),
        _silu("3B", 11008, HALF, quick=True),
        _silu("7B", 18944, HALF),
        _silu("3B float32", 11008, SINGLE),
    )


def size(*tensors: Tensor | None) -> int:
    """Bytes of tensors."""
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _meta(*sizes: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.empty(sizes, dtype=dtype, device="meta")


def _rows(width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Rows of all candidates, and scales if they are int8."""
    rows = _meta(CANDIDATES * ROWS, width, dtype=dtype)
    return rows, _meta(len(rows), dtype=SINGLE) if dtype == BYTE else None


def _pool(name: str, width: int, dtype: torch.dtype, quick: bool = False) -> Configuration:
    rows, scales = _rows(width, dtype)
    queries = _meta(4, width, dtype=SINGLE)
    arguments = rows, _meta(CANDIDATES + 1), queries, scales, 1e-6
    least = size(*arguments[:4]) + CANDIDATES * size(queries)
    return Configuration("pool_tokens", name, arguments, least, quick=quick)


def _relate(
    name: str, width: int, asked: int, dtype: torch.dtype, quick: bool = False
) -> Configuration:
    keys, scales = _rows(width // 4, dtype)
    floats = HALF if dtype == BYTE else dtype
    query = (
        _meta(asked, width // 4, dtype=floats),
        _meta(2),
        _meta(asked, 8, width // 8, dtype=floats),
        _meta(width, 8, width // 8, dtype=floats),
        _meta(4, width, dtype=floats),
    )
    offsets, pairs = _meta(CANDIDATES + 1), _meta(CANDIDATES)
    arguments = keys, offsets, *query, pairs, pairs, scales, 1e-6
    least = size(*arguments[:10]) + CANDIDATES * 4 * width * 4
    return Configuration("relate_tokens", name, arguments, least, quick=quick)


def _splice(name: str, width: int, quick: bool = False) -> Configuration:
    rows, inspected = 10 * ROWS, (CANDIDATES * ROWS, width)
    stores = [
        _meta(151936, width, dtype=HALF),
        _meta(*inspected, dtype=HALF),
        _meta(*inspected, dtype=BYTE),
    ]
    scales = [None, None, _meta(inspected[0], dtype=SINGLE)]
    spans, table = _meta(40, 8), _meta(4, 264, dtype=torch.int32)
    arguments = stores, scales, spans, table, 16, rows, HALF
    gathered = rows * width * HALF.itemsize
    # The result's rows with three positions and a slot each.
    least = size(spans, table) + 2 * gathered + rows * 4 * 8
    return Configuration("splice_features", name, arguments, least, gathered, quick)


def _paged(
    name: str,
    rows: int,
    sequences: int,
    heads: tuple[int, int],
    dtype: torch.dtype,
    quick: bool = False,
) -> Configuration:
    query, cache, table = _attention(rows, sequences, heads, dtype)
    lengths = _meta(sequences, dtype=torch.int32)
    arguments = query, cache, cache, table, _meta(sequences + 1), lengths, 128**-0.5
    least = size(*arguments[:6]) + size(query)
    return Configuration("paged_attention", name, arguments, least, quick=quick)


def _shared(
    name: str, rows: int, heads: tuple[int, int], dtype: torch.dtype, quick: bool = False
) -> Configuration:
    query, cache, table = _attention(rows, rows + 1, heads, dtype)
    nodes = _meta(rows + 1, dtype=torch.int32), _meta(rows + 1, 2, dtype=torch.int32)
    arguments = query, cache, cache, table, *nodes, 128**-0.5
    least = size(*arguments[:6]) + size(query)
    return Configuration("shared_prefix_attention", name, arguments, least, quick=quick)


def _norm(name: str, width: int, dtype: torch.dtype, quick: bool = False) -> Configuration:
    x, weight = _meta(8, width, dtype=dtype), _meta(width, dtype=dtype)
    least = size(x, x, weight, x, x)
    return Configuration("add_rms_norm", name, (x, x, weight, 1e-6), least, quick=quick)


def _silu(name: str, width: int, dtype: torch.dtype, quick: bool = False) -> Configuration:
    rows = _meta(8, 2 * width, dtype=dtype)
    return Configuration("silu_product", name, (rows,), size(rows) * 3 // 2, quick=quick)


def _rotate(
    name: str,
    heads: tuple[int, int],
    dtype: torch.dtype,
    norms: bool = False,
    quick: bool = False,
) -> Configuration:
    rows = _meta(8, heads[0] + 2 * heads[1], 128, dtype=dtype)
    turn = _meta(8, 1, 128, dtype=dtype)
    cache = _meta(1, 16, heads[1], 128, dtype=dtype)
    weight = _meta(128, dtype=dtype) if norms else None
    slots = _meta(8)
    arguments = rows, turn, turn, cache, cache, slots, heads[0], weight, weight, 1e-6
    least = size(rows, rows, turn, turn, slots, weight, weight)
    return Configuration("rotate_to_pages", name, arguments, least, quick=quick)


def _attention(
    rows: int, lists: int, heads: tuple[int, int], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, a cache of 4,352 rows for each page list, and the page table that fills it."""
    query = _meta(rows, heads[0], 128, dtype=dtype)
    cache = _meta(lists * 272, 16, heads[1], 128, dtype=dtype)
    return query, cache, _meta(lists, 272, dtype=torch.int32)
