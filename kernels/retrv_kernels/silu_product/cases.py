"""Inputs of silu_product, and the cases that every implementation must pass."""

from __future__ import annotations

from typing import Any

import torch

from retrv_kernels.inputs import Case, seeded, tolerance

TOLERANCE = tolerance(2e-6, 2e-3, 1.6e-2)
SMOKE = "width_1025"
LARGE = ("rows_500",)


def make(name: str, rows: int, width: int, *, magnitude: float = 3.0) -> Case:
    """``rows`` rows of a gate and a factor, each of ``width`` columns."""

    def arguments(dtype: torch.dtype) -> dict[str, Any]:
        values = torch.randn(rows, 2 * width, generator=seeded(rows, width))
        return {"gate_up": (magnitude * values).to(dtype)}

    shape = {"rows": rows, "f": width}
    return Case("silu_product", name, arguments, flops=5 * rows * width, shape=shape)


CASES = (
    make("no_rows", 0, 24),
    *(make(f"width_{width}", 3, width) for width in (1, 7, 64, 1025)),
    make("magnitude_100", 2, 96, magnitude=100.0),
    make("rows_500", 500, 11008),
)
