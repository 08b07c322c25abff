"""The equation, as a decoder layer computes it."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import rms_norm


def add_rms_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Reference for `retrv_kernels.ops.add_rms_norm`."""
    total = x.clone() if delta is None else x + delta
    return total, rms_norm(total, total.shape[-1:], weight, eps)
