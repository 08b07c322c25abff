"""The equation: a weight in another dtype is widened first."""

from __future__ import annotations

from torch import Tensor, nn

from retrv_kernels.ragged import dequantize, widen


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, scales: Tensor | None) -> Tensor:
    """Reference for `retrv_kernels.ops.linear`."""
    bias = None if bias is None else widen(bias)
    return nn.functional.linear(widen(x), dequantize(weight, scales), bias).to(x.dtype)
