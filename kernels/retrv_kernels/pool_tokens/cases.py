"""Inputs of pool_tokens, and the cases that every implementation must pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from retrv_kernels.inputs import FLOATS, WIDTHS, Case, offsets, quantized, seeded, tolerance

TOLERANCE = tolerance(2e-5, 2e-5, 2e-5)
SMOKE = "ragged"
LARGE = ("candidates_200",)


def make(
    name: str,
    lengths: Sequence[int],
    width: int,
    heads: int = 4,
    *,
    magnitude: float = 1.0,
    eps: float = 1e-6,
    int8: bool = False,
) -> Case:
    """Items with ``lengths`` rows each."""
    total = sum(lengths)

    def arguments(dtype: torch.dtype) -> dict[str, Any]:
        generator = seeded(total, width, heads)
        features = magnitude * torch.randn(total, width, generator=generator)
        rows, scales = quantized(features, dtype, int8)
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
    )


CASES = (
    make("no_items", [], 40),
    make("items_without_rows", [0, 3, 0, 5, 0], 40),
    make("one_row", [1], 64),
    make("one_candidate", [81], 192),
    *(make(f"width_{width}", [3, 5], width) for width in WIDTHS),
    *(make(f"heads_{heads}", [9, 2], 72, heads) for heads in (1, 2, 3, 7)),
    make("candidates_200", [1 + 7 * i % 13 for i in range(200)], 48),
    make("magnitude_1e4", [7, 30], 96, magnitude=1e4),
    make("below_eps", [7, 3], 96, magnitude=1e-3, eps=1e-5),
    make("eps_0", [7, 30, 1], 96, eps=0.0),
    make("int8", [7, 30, 1], 200, int8=True),
    make("ragged", [81, 1, 256, 37], 320),
)
