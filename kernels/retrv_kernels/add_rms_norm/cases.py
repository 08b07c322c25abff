"""Inputs of add_rms_norm, and the cases that every implementation must pass."""

from __future__ import annotations

from typing import Any

import torch

from retrv_kernels.inputs import Case, seeded, tolerance

TOLERANCE = tolerance(2e-6, 2e-3, 1.6e-2)
SMOKE = "width_65"
LARGE = ("rows_500",)


def make(name: str, rows: int, width: int, *, delta: bool = True, magnitude: float = 1.0) -> Case:
    """A residual stream of ``rows`` rows, and what is added to it if ``delta``."""

    def arguments(dtype: torch.dtype) -> dict[str, Any]:
        generator = seeded(rows, width)
        x, added = magnitude * torch.randn(2, rows, width, generator=generator)
        weight = torch.randn(width, generator=generator).to(dtype)
        return {"x": x.to(dtype), "delta": added.to(dtype) if delta else None, "weight": weight}

    shape = {"rows": rows, "d": width}
    return Case("add_rms_norm", name, arguments, flops=5 * rows * width, shape=shape)


CASES = (
    make("no_rows", 0, 24),
    *(make(f"width_{width}", 3, width) for width in (1, 7, 64, 65, 1500)),
    make("without_delta", 2, 96, delta=False),
    make("magnitude_1e4", 2, 96, magnitude=1e4),
    make("rows_500", 500, 2048),
)
