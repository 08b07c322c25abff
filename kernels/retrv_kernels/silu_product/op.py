"""The public function, its checks and its registration."""

from __future__ import annotations

import torch
from torch import Tensor

from retrv_kernels import checks
from retrv_kernels.torch_operator import register


def silu_product(gate_up: Tensor) -> Tensor:
    """``silu(gate) · up``, where the two lie side by side as one product gives them.

    silu(gate) is rounded to the dtype before it is multiplied, as by PyTorch's two operations.

    Args:
        gate_up: ``[n, 2 f]`` float32, float16 or bfloat16, the gate first.

    Returns:
        ``[n, f]`` in its dtype. Not differentiable.

    Raises:
        ValueError: a shape or dtype that does not fit.

    Source: SwiGLU (Shazeer 2020).
    """
    checks.shape("gate_up", gate_up, "n", "2 f")
    checks.dtype("gate_up", gate_up, checks.FLOATS)
    if gate_up.shape[1] == 0 or gate_up.shape[1] % 2:
        raise ValueError(f"gate_up must be [n, 2 f] with f > 0, not {list(gate_up.shape)}")
    checks.detached(gate_up)
    return torch.ops.retrv_kernels.silu_product(gate_up)


def _fake(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty((gate_up.shape[0], gate_up.shape[1] // 2))


register("silu_product", _fake)
