"""Chunks of nodes, each for all rows that share it, on torch's threads; then a merge."""

from __future__ import annotations

import torch
from torch import Tensor

from retrv_kernels import native
from retrv_kernels.paged_attention.layout import with_equal_strides
from retrv_kernels.paged_attention.native import cache_of


def shared_prefix_attention(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    node_lens: Tensor,
    node_rows: Tensor,
    scale: float,
) -> Tensor:
    """Native implementation of `retrv_kernels.ops.shared_prefix_attention`."""
    query = query.contiguous()
    table, lengths, rows = (x.long().contiguous() for x in (page_table, node_lens, node_rows))
    keys, values = with_equal_strides(key_pages, value_pages)
    cache = cache_of(keys, values, table)
    out = torch.empty_like(query, dtype=torch.float32)
    native.function("shared_prefix_attention")(
        query.data_ptr(),
        *query.shape[:2],
        cache.data_ptr(),
        lengths.data_ptr(),
        rows.data_ptr(),
        len(lengths),
        scale,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out.to(query.dtype)
