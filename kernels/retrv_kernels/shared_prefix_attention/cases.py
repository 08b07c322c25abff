"""Inputs of shared_prefix_attention, and the cases that every implementation must pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from retrv_kernels.inputs import Case, seeded, tolerance
from retrv_kernels.paged_attention.cases import cache

TOLERANCE = tolerance(2e-5, 2e-3, 1.6e-2)
SMOKE = "odd_sizes"
LARGE = ("long", "sequences_200")


def make(
    name: str,
    nodes: Sequence[tuple[int, tuple[int, int]]],
    sequences: int,
    heads: tuple[int, int],
    width: int,
    *,
    page_size: int = 16,
) -> Case:
    """Nodes given as (cached rows, (first sequence, one after the last)).

    Args:
        heads: number of heads of queries and of the cache.
    """
    lengths = [length for length, _ in nodes]

    def arguments(dtype: torch.dtype) -> dict[str, Any]:
        generator = seeded(sum(lengths), sequences, *heads, width)
        keys, values, table = cache(lengths, heads[1], width, page_size, generator)
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
    )


NESTED = ((37, (0, 5)), (20, (0, 3)), (33, (3, 5)), (1, (0, 1)), (16, (1, 2)), (5, (2, 3)))
CASES = (
    make("no_sequences", [], 0, (4, 2), 16),
    make("not_covered", [(9, (1, 2))], 3, (4, 2), 16),
    make("nodes_without_rows", [(0, (0, 2)), (5, (0, 2))], 2, (4, 2), 16),
    make("nested", NESTED, 5, (6, 2), 32),
    make("long", [(517, (0, 8)), *((9, (i, i + 1)) for i in range(8))], 8, (8, 2), 64),
    make("odd_sizes", NESTED, 5, (3, 3), 33, page_size=3),
    make("sequences_200", [(40, (0, 200)), (3, (100, 101))], 200, (3, 3), 64),
)
