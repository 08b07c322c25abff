"""Inputs of relate_tokens, and the cases that every implementation must pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from retrv_kernels.inputs import FLOATS, Case, offsets, quantized, seeded, tolerance
from retrv_kernels.relate_tokens.forms import norm_operations

TOLERANCE = tolerance(2e-5, 2e-3, 1.6e-2)
SMOKE = "odd_sizes"
LARGE = ("picture_query", "page_query", "long_without_norm", "chosen_pairs", "candidates_200")


def make(
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
) -> Case:
    """Candidates with ``lengths`` rows and queries with ``queries`` rows.

    Args:
        heads: number of heads of ATT₂ and of ATT₁.
        pairs: (candidate, query) of each pair; all of them if None.
        magnitude: size of the keys; the query keys are divided by it.
        sharpness: standard deviation of ATT₂'s scores.
    """
    total, asked, (relate, pool) = sum(lengths), sum(queries), heads
    if pairs is None:
        pairs = [(c, q) for q in range(len(queries)) for c in range(len(lengths))]

    def arguments(dtype: torch.dtype) -> dict[str, Any]:
        generator = seeded(total, asked, key_width, width)
        keys = magnitude * torch.randn(total, key_width, generator=generator)
        keys, scales = quantized(keys, dtype, int8)
        spread = sharpness / magnitude / (key_width / relate) ** 0.5
        query_keys = spread * torch.randn(asked, key_width, generator=generator)
        depth = -(-width // relate)
        values = torch.randn(asked, relate, depth, generator=generator)
        output = torch.randn(width, relate, depth, generator=generator) / depth**0.5
        pooled = torch.randn(pool, width, generator=generator) * (4 / width**0.5)
        return {
            "relation_keys": keys,
            "cu_seqlens": offsets(lengths),
            "query_keys": query_keys.to(dtype),
            "cu_queries": offsets(queries),
            "query_values": values.to(dtype),
            "output": output.to(dtype),
            "folded_queries": pooled.to(dtype),
            "candidate": torch.tensor([c for c, _ in pairs], dtype=torch.long),
            "query": torch.tensor([q for _, q in pairs], dtype=torch.long),
            "scales": scales,
            "eps": eps,
        }

    flops = 0
    for c, q in pairs:
        weights, values = queries[q] * relate, (queries[q], relate, -(-width // relate))
        flops += lengths[c] * (2 * queries[q] * key_width + 4 * pool * weights)
        flops += 2 * pool * weights * width
        if eps is not None:
            flops += min(norm_operations(lengths[c], values, width, form) for form in (True, False))
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
    )


CASES = (
    make("no_pairs", [3, 4], [5], 16, 40, pairs=[]),
    make("empty_sides", [3, 0, 4], [5, 0], 16, 40),
    make("one_row", [1], [1], 16, 40),
    make("text_query", [81, 9, 40], [8], 64, 192),
    make("picture_query", [30, 7], [256], 64, 96),
    make("page_query", [300, 0, 270, 3], [384], 64, 96),
    make("mixed_queries", [5, 0, 9], [3, 130, 0], 24, 40, (8, 2)),
    make("without_norm", [30, 7], [19], 64, 96, eps=None),
    make("long_without_norm", [30, 7], [384], 64, 96, eps=None),
    make("odd_sizes", [13, 30, 7], [3, 11], 21, 45, (3, 5)),
    make("chosen_pairs", [5, 9, 2], [4, 7], 24, 40, pairs=[(2, 1), (0, 0), (2, 0), (1, 1)]),
    make("candidates_200", [1 + 7 * i % 13 for i in range(200)], [6], 16, 32),
    make("magnitude_1e4", [30, 7], [9], 32, 48, magnitude=1e4),
    make("sharp", [30, 7], [9], 32, 48, sharpness=30.0),
    make("int8", [30, 7], [9], 32, 48, int8=True),
    make("int8_long_query", [30, 7], [128], 32, 48, int8=True),
)
