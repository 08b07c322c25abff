"""The operations. Each runs the best implementation for its tensors' device; `explain` says which.

Every op is a torch operator, so that it can be compiled and exported. Where a gradient is needed
the reference runs, and PyTorch differentiates it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retrv_kernels import registry
from retrv_kernels.registry import Choice
from retrv_kernels.row_inverse_rms import reference as _row_inverse_rms

__all__ = ["Choice", "explain", "row_inverse_rms"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def explain(device: str = "cpu") -> tuple[Choice, ...]:
    """What would run for each op on a device type ("cpu", "cuda"), and why; `str()` reads well.

    Raises:
        ImportError: the compiled module is there but broken.
        ValueError, RuntimeError: an environment override that cannot be followed here.
    """
    return tuple(registry.choose(op, device) for op in registry.OPS)


def row_inverse_rms(features: Tensor, eps: float = 1e-6) -> Tensor:
    """The factor by which RMSNorm scales a row: out[i] = 1 / sqrt(mean_j features[i, j]² + eps).

    Args:
        features: [n, d], d > 0, float32, float16 or bfloat16; n = 0 is fine.
        eps: 0 or more, in the units of features².

    Returns:
        [n] float32, accumulated in float32. A row that holds NaN gives NaN; one whose squares
        overflow float32 gives 0.

    Raises:
        ValueError: another shape or dtype, or a negative eps.

    Source: Zhang & Sennrich, Root Mean Square Layer Normalization, 2019, equation 4.
    """
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(f"features must be [n, d] with d > 0, not {list(features.shape)}")
    if features.dtype not in DTYPES:
        raise ValueError(f"features must be float32, float16 or bfloat16, not {features.dtype}")
    if not eps >= 0:
        raise ValueError(f"eps must be 0 or more, not {eps}")
    if torch.is_grad_enabled() and features.requires_grad:
        return _row_inverse_rms.row_inverse_rms(features, eps)
    return torch.ops.retrv_kernels.row_inverse_rms(features, eps)


# The plain interface rather than `custom_op`: 10 µs a call against 18 on 8 x 64 rows.
torch.library.define("retrv_kernels::row_inverse_rms", "(Tensor features, float eps) -> Tensor")


@torch.library.impl("retrv_kernels::row_inverse_rms", "CompositeExplicitAutograd")
def _(features: Tensor, eps: float) -> Tensor:
    choice = registry.choose("row_inverse_rms", features.device.type)
    return choice.implementation.run(features, eps)


@torch.library.register_fake("retrv_kernels::row_inverse_rms")
def _(features: Tensor, eps: float) -> Tensor:
    return features.new_empty(features.shape[0], dtype=torch.float32)
