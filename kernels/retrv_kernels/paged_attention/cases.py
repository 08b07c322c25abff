"""Inputs of paged_attention, and the cases that every implementation must pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from retrv_kernels.inputs import Case, offsets, seeded, tolerance

TOLERANCE = tolerance(2e-5, 2e-3, 1.6e-2)
SMOKE = "odd_width"
LARGE = ("sequences_200",)


def cache(
    lengths: Sequence[int], heads: int, width: int, page_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Pages of keys, pages of values and the page table of sequences with ``lengths`` rows.

    Slots that belong to no sequence hold NaN.
    """
    needed = [-(-length // page_size) for length in lengths]
    count = sum(needed) + 1
    order = torch.randperm(count, generator=generator).int()
    table = torch.full((len(lengths), max(needed, default=0) + 1), count - 1, dtype=torch.int32)
    # The rows of a head are contiguous within a page: paged_attention reads them fastest.
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


def make(
    name: str,
    lengths: Sequence[tuple[int, int]],
    heads: tuple[int, int],
    width: int,
    *,
    page_size: int = 16,
    magnitude: float = 1.0,
) -> Case:
    """Sequences given as (new rows, all cached rows).

    Args:
        heads: number of heads of queries and of the cache.
    """
    new = [n for n, _ in lengths]
    kv = [length for _, length in lengths]

    def arguments(dtype: torch.dtype) -> dict[str, Any]:
        generator = seeded(sum(new), sum(kv), *heads, width)
        keys, values, table = cache(kv, heads[1], width, page_size, generator)
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
    )


CASES = (
    make("no_sequences", [], (4, 2), 16),
    make("nothing_new", [(0, 7), (1, 20)], (4, 2), 16),
    make("decode", [(1, 1), (1, 16), (1, 17), (1, 100)], (4, 2), 32),
    make("prefill", [(1, 1), (33, 33), (5, 5)], (4, 4), 16),
    make("extend", [(7, 40), (1, 19), (20, 23)], (6, 2), 24, page_size=4),
    make("page_of_one", [(3, 9), (2, 2)], (3, 3), 64, page_size=1),
    make("odd_width", [(3, 9), (70, 131)], (7, 1), 33, page_size=7),
    make("magnitude_1e4", [(3, 90)], (4, 2), 64, magnitude=1e4),
    make("sequences_200", [(1, 1 + 7 * i % 53) for i in range(200)], (3, 3), 64),
)
