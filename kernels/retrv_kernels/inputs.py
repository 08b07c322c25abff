"""What the ops' ``cases.py`` have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from retrv_kernels.ragged import quantize

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
WIDTHS = (1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65, 897)
"""Sizes around those of vectors, for their tails."""


@dataclass(frozen=True)
class Case:
    """One input of an op.

    Args:
        arguments: makes the arguments of the public function, with floats of a dtype; the same
            ones at every call.
        dtypes: dtypes in which the case is run.
        flops: floating-point operations of the equation, where a product and a sum count as two.
        shape: sizes by name, for tables and plots.
    """

    op: str
    name: str
    arguments: Callable[[torch.dtype], dict[str, Any]]
    dtypes: tuple[torch.dtype, ...] = FLOATS
    flops: int = 0
    shape: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"


def tolerance(float32: float, float16: float, bfloat16: float) -> dict[torch.dtype, float]:
    """Largest error of an op in each dtype, relative to the largest expected value.

    The error is that of the arithmetic alone: the reference in float64 gets the same rounded
    inputs. 0 means that the op computes nothing, as a gather does.
    """
    return {torch.float32: float32, torch.float16: float16, torch.bfloat16: bfloat16}


def seeded(*numbers: int) -> torch.Generator:
    """A generator that depends on these sizes alone."""
    return torch.Generator().manual_seed(hash(numbers) % 2**31)


def offsets(lengths: Sequence[int]) -> Tensor:
    """Offsets ``[m + 1]`` of m items of these lengths."""
    return torch.tensor([0, *lengths]).cumsum(0)


def quantized(rows: Tensor, dtype: torch.dtype, int8: bool) -> tuple[Tensor, Tensor | None]:
    """Rows in a dtype without scales, or as int8 with scales."""
    return quantize(rows) if int8 else (rows.to(dtype), None)
