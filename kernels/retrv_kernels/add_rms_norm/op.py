"""The public function, its checks and its registration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retrv_kernels import checks
from retrv_kernels.torch_operator import register


def add_rms_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, *, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """``s = x + δ`` and ``s / √(mean(s²) + eps) · weight``, row by row.

    The sum is rounded to x's dtype, as the residual stream is. The norm of the rounded sum is
    computed in float32 and rounded once.

    Args:
        x: ``[n, d]`` float32, float16 or bfloat16.
        delta: shape and dtype of x; None for the norm of x alone.
        weight: ``[d]``, dtype of x.

    Returns:
        The sum (without delta a copy of x) and its norm, both with x's shape and dtype. Not
        differentiable.

    Raises:
        ValueError: a shape, dtype or eps is invalid.

    Source: RMSNorm (Zhang and Sennrich 2019).
    """
    checks.shape("x", x, "n", "d")
    checks.dtype("x", x, checks.FLOATS)
    if delta is not None:
        checks.shape("delta", delta, *x.shape)
        checks.dtype("delta", delta, (x.dtype,))
    checks.shape("weight", weight, x.shape[1])
    checks.dtype("weight", weight, (x.dtype,))
    checks.not_negative("eps", eps)
    checks.compatible(x=x, delta=delta, weight=weight)
    checks.no_gradient(x, delta, weight)
    return torch.ops.retrv_kernels.add_rms_norm(x, delta, weight, eps)


def _fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


register("add_rms_norm", _fake)
