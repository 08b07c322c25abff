"""Tiles of new rows with all query heads of a cache head; torch's threads share the tiles."""

from __future__ import annotations

import torch
from torch import Tensor

from retrv_kernels import native
from retrv_kernels.paged_attention.layout import with_equal_strides


def paged_attention(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    cu_seqlens: Tensor,
    kv_lens: Tensor,
    scale: float,
) -> Tensor:
    """Native implementation of `retrv_kernels.ops.paged_attention`."""
    query = query.contiguous()
    table, offsets, lengths = (x.long().contiguous() for x in (page_table, cu_seqlens, kv_lens))
    keys, values = with_equal_strides(key_pages, value_pages)
    cache = cache_of(keys, values, table)
    out = torch.empty_like(query, dtype=torch.float32)
    native.function("paged_attention")(
        query.data_ptr(),
        query.shape[1],
        cache.data_ptr(),
        offsets.data_ptr(),
        lengths.data_ptr(),
        len(lengths),
        scale,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out.to(query.dtype)


def cache_of(keys: Tensor, values: Tensor, page_table: Tensor) -> Tensor:
    """A PagedCache of csrc/cache.h. It holds addresses: keep the tensors alive while it is used."""
    return torch.tensor(
        [
            keys.data_ptr(),
            values.data_ptr(),
            native.DTYPES[keys.dtype],
            *keys.shape[1:],
            *keys.stride()[:3],
            page_table.data_ptr(),
            page_table.shape[1],
        ],
        device="cpu",
    )
