"""Inputs on which every implementation of an op must agree with float64.

Tests and benchmarks run them. A tolerance belongs to an op and a dtype. It bounds the error
relative to the reference in float64 on the same rounded inputs, so it is what the arithmetic may
lose, not what the storage lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One input of an op.

    Args:
        arguments: makes the op's arguments with floating-point tensors of a dtype; repeatable.
    """

    op: str
    name: str
    arguments: Callable[[torch.dtype], tuple[Any, ...]]

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"


TOLERANCE: Mapping[str, Mapping[torch.dtype, float]] = {
    "row_inverse_rms": {torch.float32: 1e-6, torch.float16: 1e-6, torch.bfloat16: 1e-6},
}


def _rows(*shape: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return scale * (2 * torch.rand(shape, generator=generator) - 1)


def _row_inverse_rms(name: str, features: Callable[[], Tensor], eps: float = 1e-6) -> Case:
    return Case("row_inverse_rms", name, lambda dtype: (features().to(dtype), eps))


CASES: tuple[Case, ...] = (
    _row_inverse_rms("empty", lambda: _rows(0, 64)),
    _row_inverse_rms("one_row", lambda: _rows(1, 2048)),
    # Around one vector, four vectors and their tails, in every instruction set.
    *(
        _row_inverse_rms(f"width_{width}", partial(_rows, 3, width))
        for width in (1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 71, 897)
    ),
    _row_inverse_rms("threads", lambda: _rows(301, 896)),
    _row_inverse_rms("magnitude_1e4", lambda: _rows(5, 896, scale=1e4)),
    _row_inverse_rms("below_eps", lambda: _rows(5, 896, scale=1e-3), eps=1e-5),
    _row_inverse_rms("zeros", lambda: torch.zeros(2, 40)),
)
