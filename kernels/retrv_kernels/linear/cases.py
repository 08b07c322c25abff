"""Inputs of linear, and the cases that every implementation must pass."""

from __future__ import annotations

from typing import Any

import torch

from retrv_kernels.inputs import FLOATS, WIDTHS, Case, quantized, seeded, tolerance

TOLERANCE = tolerance(2e-5, 2e-3, 1.6e-2)
SMOKE = "rows_9"
LARGE = ("several_threads",)


def make(
    name: str, rows: int, width: int, depth: int, *, bias: bool = True, int8: bool = False
) -> Case:
    """``rows`` rows times weights ``[width, depth]`` of the same dtype, or of int8."""

    def arguments(dtype: torch.dtype) -> dict[str, Any]:
        generator = seeded(rows, width, depth)
        x = torch.randn(rows, depth, generator=generator)
        weight, scales = quantized(torch.randn(width, depth, generator=generator), dtype, int8)
        offset = torch.randn(width, generator=generator).to(dtype) if bias else None
        return {"x": x.to(dtype), "weight": weight, "bias": offset, "scales": scales}

    return Case(
        "linear",
        name,
        arguments,
        (torch.float32,) if int8 else FLOATS,
        flops=2 * rows * width * depth,
        shape={"rows": rows, "out": width, "in": depth},
    )


CASES = (
    make("no_rows", 0, 9, 24),
    make("no_outputs", 3, 0, 24),
    *(make(f"rows_{rows}", rows, 29, 72) for rows in (*range(1, 10), 31, 32, 33)),
    *(make(f"depth_{depth}", 3, 5, depth) for depth in WIDTHS),
    *(make(f"outputs_{width}", 5, width, 40) for width in (1, 7, 23, 25, 49)),
    make("without_bias", 3, 29, 72, bias=False),
    make("several_threads", 7, 397, 200),
    make("int8", 7, 397, 200, int8=True),
    make("int8_one_row", 1, 50, 75, bias=False, int8=True),
)
