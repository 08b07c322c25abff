"""Chunks of nodes, all rows that share them together, spread over torch's threads; then a merge."""

from __future__ import annotations

import torch
from torch import Tensor

from retrv_kernels import native


def shared_prefix_attention(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    node_lens: Tensor,
    node_rows: Tensor,
    scale: float,
) -> Tensor:
    query, keys, values = query.contiguous(), key_pages.contiguous(), value_pages.contiguous()
    table, lengths, rows = (x.long().contiguous() for x in (page_table, node_lens, node_rows))
    _, page_size, kv_heads, width = keys.shape
    out = torch.empty(query.shape)
    native.function("shared_prefix_attention")(
        query.data_ptr(),
        query.shape[0],
        query.shape[1],
        keys.data_ptr(),
        values.data_ptr(),
        native.DTYPES[keys.dtype],
        page_size,
        kv_heads,
        width,
        table.data_ptr(),
        table.shape[1],
        lengths.data_ptr(),
        rows.data_ptr(),
        len(lengths),
        scale,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out.to(query.dtype)
