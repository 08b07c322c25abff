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
    """``y = x Wᵀ + b`` for few rows, as in decoding, where reading the weights takes the time.

    The weights are read as they lie, whatever their dtype, with no copy of them; a layer that is
    called often is better a :class:`retrv_kernels.linear.PreparedLinear`, whose call costs less.

    Args:
        x: ``[m, k]`` float32, float16 or bfloat16.
        weight: ``[n, k]``, of any of these dtypes; or int8 with scales. Read fastest where a row's
            numbers lie side by side.
        bias: ``[n]`` floats.
        scales: of int8 weights, ``[n]`` float32: row j is ``scales[j] · weight[j]``.

    Returns:
        ``[m, n]`` in x's dtype, accumulated in float32. Not differentiable. Up to
        `retrv_kernels.linear.native.ROWS` rows on a CPU, a row does not depend on the others.

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    checks.rows("weight", weight, scales)
    checks.shape("x", x, "m", weight.shape[1])
    checks.dtype("x", x, checks.FLOATS)
    if bias is not None:
        checks.shape("bias", bias, len(weight))
        checks.dtype("bias", bias, checks.FLOATS)
    checks.together(x=x, weight=weight, bias=bias, scales=scales)
    checks.detached(x, weight, bias)
    return torch.ops.retrv_kernels.linear(x, weight, bias, scales)


def _fake(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))


register("linear", _fake)
