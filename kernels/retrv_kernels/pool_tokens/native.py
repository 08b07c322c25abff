"""One read of the rows; torch's threads share the items."""

from __future__ import annotations

import torch
from torch import Tensor

from retrv_kernels import native


def pool_tokens(
    features: Tensor,
    cu_seqlens: Tensor,
    folded_queries: Tensor,
    scales: Tensor | None,
    eps: float,
) -> Tensor:
    """Native implementation of `retrv_kernels.ops.pool_tokens`."""
    features, offsets = features.contiguous(), cu_seqlens.long().contiguous()
    queries = folded_queries.float().contiguous()
    scales = None if scales is None else scales.contiguous()
    items, (heads, width) = len(offsets) - 1, queries.shape
    out = queries.new_empty(items, heads, width)
    native.function("pool_tokens")(
        features.data_ptr(),
        native.DTYPES[features.dtype],
        native.address(scales),
        offsets.data_ptr(),
        items,
        width,
        queries.data_ptr(),
        heads,
        eps,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out
