"""The equation, as a decoder layer computes it."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import silu


def silu_product(gate_up: Tensor) -> Tensor:
    """Reference for `retrv_kernels.ops.silu_product`."""
    gate, up = gate_up.chunk(2, -1)
    return silu(gate) * up
