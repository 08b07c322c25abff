"""Few rows times weights that are read in place; torch's threads share the outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from retrv_kernels import native
from retrv_kernels.linear import reference

ROWS = 32
"""Largest number of rows for which the native kernel runs."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, scales: Tensor | None) -> Tensor:
    """Native implementation of `retrv_kernels.ops.linear`."""
    if len(x) > ROWS:
        return reference.linear(x, weight, bias, scales)
    rows, weight = _packed(x.float()), _packed(weight)
    bias = None if bias is None else bias.float().contiguous()
    scales = None if scales is None else scales.contiguous()
    out = x.new_empty(len(x), len(weight), dtype=torch.float32)
    native.function("linear")(
        rows.data_ptr(),
        rows.stride(0),
        len(rows),
        weight.data_ptr(),
        native.DTYPES[weight.dtype],
        weight.stride(0),
        native.address(scales),
        native.address(bias),
        *weight.shape,
        out.data_ptr(),
        len(weight),
        torch.get_num_threads(),
    )
    return out.to(x.dtype)


def _packed(matrix: Tensor) -> Tensor:
    """The matrix with contiguous rows; copied only if needed."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()
