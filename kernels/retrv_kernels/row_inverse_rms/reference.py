"""The equation. In float64 it is what the tests compare with."""

from __future__ import annotations

import torch
from torch import Tensor


def row_inverse_rms(features: Tensor, eps: float) -> Tensor:
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    return (wide.square().mean(dim=-1) + eps).rsqrt()
