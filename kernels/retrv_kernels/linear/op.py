"""The public function, its checks and its registration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retrv_kernels import checks
from retrv_kernels.torch_operator import register


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, scales: Tensor | None = None
) -> Tensor:
    """``y = x Wᵀ + b`` for few rows, as in decoding, which spends its time reading weights.

    Weights of any dtype are read in place, without a copy. For a layer that is called often,
    :class:`retrv_kernels.linear.PreparedLinear` takes less time a call.

    Args:
        x: ``[m, k]`` float32, float16 or bfloat16.
        weight: ``[n, k]``, any of these dtypes, or int8 with scales. Contiguous rows are read
            fastest.
        bias: ``[n]`` floats.
        scales: scales of int8 weights, ``[n]`` float32: row j is ``scales[j] · weight[j]``.

    Returns:
        ``[m, n]`` in x's dtype, accumulated in float32. Not differentiable. On a CPU, with up to
        `retrv_kernels.linear.native.ROWS` rows, a row's result does not depend on the other rows.

    Raises:
        ValueError: a shape or dtype is invalid.
    """
    checks.rows("weight", weight, scales)
    checks.shape("x", x, "m", weight.shape[1])
    checks.dtype("x", x, checks.FLOATS)
    if bias is not None:
        checks.shape("bias", bias, len(weight))
        checks.dtype("bias", bias, checks.FLOATS)
    checks.compatible(x=x, weight=weight, bias=bias, scales=scales)
    checks.no_gradient(x, weight, bias)
    return torch.ops.retrv_kernels.linear(x, weight, bias, scales)


def _fake(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))


register("linear", _fake)
