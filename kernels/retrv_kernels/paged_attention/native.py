"""Tiles of new rows, all query heads of a cache head together, spread over torch's threads."""

from __future__ import annotations

import torch
from torch import Tensor

from retrv_kernels import native


def paged_attention(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    cu_seqlens: Tensor,
    kv_lens: Tensor,
    scale: float,
) -> Tensor:
    query, keys, values = query.contiguous(), key_pages.contiguous(), value_pages.contiguous()
    table, offsets, lengths = (x.long().contiguous() for x in (page_table, cu_seqlens, kv_lens))
    _, page_size, kv_heads, width = keys.shape
    out = torch.empty(query.shape)
    native.function("paged_attention")(
        query.data_ptr(),
        query.shape[1],
        keys.data_ptr(),
        values.data_ptr(),
        native.DTYPES[keys.dtype],
        page_size,
        kv_heads,
        width,
        table.data_ptr(),
        table.shape[1],
        offsets.data_ptr(),
        lengths.data_ptr(),
        len(lengths),
        scale,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out.to(query.dtype)
