"""linear, with few rows and the largest layers of real models."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from bench.harness import Prepared, Trial
from bench.suites.kernels.entries import Context, call, converted, implementations
from retrv_kernels.cases import TOLERANCE, expected_of
from retrv_kernels.linear.cases import make

# Outputs and inputs of the gate layer of Qwen2.5-0.5B and of Qwen2.5-VL-3B.
_SIZES = {"0.5B": (4864, 896), "3B": (11008, 2048)}


def trials(context: Context, quick: bool) -> Iterator[Trial]:
    """Trials with 1 to 32 rows, and weights in float32 and int8."""
    if context.device != "cpu":
        return
    for rows in (1, 8) if quick else (1, 2, 4, 8, 16, 32):
        yield _trial("0.5B", rows, "float32")
    yield _trial("0.5B", 1, "int8")
    if not quick:
        for rows in (1, 8):
            for dtype in ("float32", "int8"):
                yield _trial("3B", rows, dtype)


def _trial(model: str, rows: int, dtype: str) -> Trial:
    width, depth = _SIZES[model]
    name = f"{model}, {rows} row{'s' if rows > 1 else ''}"
    case = make(name, rows, width, depth, bias=False, int8=dtype == "int8")

    def prepare() -> Prepared:
        arguments: dict[str, Any] = converted(case.arguments(torch.float32), "cpu")
        run = partial(call, "linear", arguments)
        return Prepared(
            partial(expected_of, "linear", arguments),
            implementations("linear", "cpu", run, "PyTorch"),
        )

    return Trial(
        op="linear",
        name=name,
        dtype=dtype,
        shape=case.shape,
        flops=case.flops,
        bytes=width * depth * (1 if dtype == "int8" else 4),
        tolerance=TOLERANCE["linear"][torch.float32],
        prepare=prepare,
        plots=("ratios",) if rows in (1, 8) else (),
    )
