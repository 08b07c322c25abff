"""The public function, its checks and its registration."""

from __future__ import annotations

import torch
from torch import Tensor

from retrv_kernels import checks
from retrv_kernels.torch_operator import register


def silu_product(gate_up: Tensor) -> Tensor:
    """``silu(gate) · up`` of a gate and an up projection that one linear layer computes.

    silu(gate) is rounded to the dtype before the product, as in PyTorch's two operations.

    Args:
        gate_up: gate, then up, ``[n, 2 f]`` float32, float16 or bfloat16.

    Returns:
        ``[n, f]`` in the same dtype. Not differentiable.

    Raises:
        ValueError: the shape or dtype is invalid.

    Source: SwiGLU (Shazeer 2020).
    """
    checks.shape("gate_up", gate_up, "n", "2 f")
    checks.dtype("gate_up", gate_up, checks.FLOATS)
    if gate_up.shape[1] == 0 or gate_up.shape[1] % 2:
        raise ValueError(f"gate_up must be [n, 2 f] with f > 0, not {list(gate_up.shape)}")
    checks.no_gradient(gate_up)
    return torch.ops.retrv_kernels.silu_product(gate_up)


def _fake(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty((gate_up.shape[0], gate_up.shape[1] // 2))


register("silu_product", _fake)
