"""The equation: a weight in another dtype is widened first."""

from __future__ import annotations

from torch import Tensor, nn

from retrv_kernels.ragged import dequantize, wide


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, scales: Tensor | None) -> Tensor:
    bias = None if bias is None else wide(bias)
    return nn.functional.linear(wide(x), dequantize(weight, scales), bias).to(x.dtype)
