"""The operations. Each runs the best implementation for its tensors' device; `explain` says which.

Every op is a torch operator, so that it can be compiled and exported.
"""

from __future__ import annotations

from retrv_kernels import registry
from retrv_kernels.paged_attention.op import paged_attention
from retrv_kernels.pool_tokens.op import pool_tokens
from retrv_kernels.registry import Choice
from retrv_kernels.relate_tokens.op import relate_tokens
from retrv_kernels.shared_prefix_attention.op import shared_prefix_attention
from retrv_kernels.splice_features.op import Span, Splice, splice_features

__all__ = [
    "Choice",
    "Span",
    "Splice",
    "explain",
    "paged_attention",
    "pool_tokens",
    "relate_tokens",
    "shared_prefix_attention",
    "splice_features",
]


def explain(device: str = "cpu") -> tuple[Choice, ...]:
    """What would run for each op on a device type ("cpu", "cuda"), and why; `str()` reads well.

    Raises:
        ImportError: the compiled module is there but broken.
        ValueError, RuntimeError: an environment override that cannot be followed here.
    """
    return tuple(registry.choose(op, device) for op in registry.OPS)
