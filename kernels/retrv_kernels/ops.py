"""The operations. Each runs the best implementation for its tensors' device; `explain` says which.

Every op is a PyTorch operator, so it can be compiled and exported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from retrv_kernels import registry
from retrv_kernels.add_rms_norm.op import add_rms_norm
from retrv_kernels.linear.op import linear
from retrv_kernels.paged_attention.op import paged_attention
from retrv_kernels.pool_tokens.op import pool_tokens
from retrv_kernels.registry import Choice
from retrv_kernels.relate_tokens.op import relate_tokens
from retrv_kernels.rotate_to_pages.op import rotate_to_pages
from retrv_kernels.shared_prefix_attention.op import shared_prefix_attention
from retrv_kernels.silu_product.op import silu_product
from retrv_kernels.splice_features.op import Span, Splice, splice_features

__all__ = [
    "Choice",
    "Span",
    "Splice",
    "add_rms_norm",
    "explain",
    "linear",
    "paged_attention",
    "pool_tokens",
    "relate_tokens",
    "rotate_to_pages",
    "shared_prefix_attention",
    "silu_product",
    "splice_features",
    "unchecked",
]


def explain(device: str = "cpu") -> tuple[Choice, ...]:
    """The implementation of each op on a device type ("cpu", "cuda"), and the reason, as text too.

    Raises:
        ImportError: the compiled module is installed but does not load.
        ValueError, RuntimeError: the implementation that the caller asks for cannot run here.
    """
    return tuple(registry.choose(op, device) for op in registry.OPS)


def unchecked(op: str, device: str, dtype: torch.dtype) -> Callable[..., Any]:
    """The implementation of an op for a device type and dtype: a function of its arguments.

    It is for callers such as an engine, whose arguments are valid by construction: checks and
    dispatch take 70 to 90 µs a call on one processor, more than the attention of a small decode
    step.

    Raises:
        ValueError, RuntimeError: the implementation that the caller asks for cannot run here.
    """
    if dtype is torch.float64:  # which only the references compute
        return registry.OPS[op][-1].run
    return registry.choose(op, device).implementation.run
