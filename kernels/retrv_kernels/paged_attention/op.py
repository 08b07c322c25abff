"""The public function, its checks and its registration."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrv_kernels import checks
from retrv_kernels.torch_operator import register


def paged_attention(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    cu_seqlens: Tensor,
    kv_lens: Tensor,
    *,
    scale: float | None = None,
) -> Tensor:
    """Grouped-query attention of packed new rows over a paged cache that already holds them.

    The last of a sequence's ``kv_lens`` cached rows are its new ones. A new row sees the cached
    prefix and the new rows up to itself. One new row is a decode step; several are a prefill, with
    or without a prefix. A batch may mix both.

    Args:
        query: new rows of all sequences, ``[n, H, d_h]``, float32, float16 or bfloat16.
        key_pages, value_pages: the cache, ``[pages, page size, H_kv, d_h]``, the query's dtype.
            H_kv divides H; query head h reads cache head ``h // (H / H_kv)``. Unless the
            two have equal strides they are copied; a view of ``[pages, H_kv, page size, d_h]`` is
            read fastest.
        page_table: pages of each sequence in order, ``[b, max_pages]`` integers; entries beyond a
            sequence's rows are not read.
        cu_seqlens: offsets of the sequences' new rows, ``[b + 1]`` integers.
        kv_lens: cached rows of each sequence, new ones included, ``[b]`` integers.
        scale: factor of the scores; 1/√d_h if None.

    Returns:
        ``[n, H, d_h]`` in the query's dtype, accumulated in float32. Not differentiable.

    Raises:
        ValueError: a shape or dtype is invalid; on a CPU also an offset, length or page.

    Source: PagedAttention (Kwon et al. 2023), with FlashAttention's online softmax (Dao 2023).
    """
    check_cache(query, key_pages, value_pages, page_table)
    checks.offsets("cu_seqlens", cu_seqlens)
    checks.shape("page_table", page_table, len(cu_seqlens) - 1, "max_pages")
    checks.shape("kv_lens", kv_lens, len(cu_seqlens) - 1)
    checks.dtype("kv_lens", kv_lens, checks.INTEGERS)
    checks.compatible(query=query, cu_seqlens=cu_seqlens, kv_lens=kv_lens)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return torch.ops.retrv_kernels.paged_attention(
        query, key_pages, value_pages, page_table, cu_seqlens, kv_lens, scale
    )


def check_cache(query: Tensor, key_pages: Tensor, value_pages: Tensor, page_table: Tensor) -> None:
    """Raises ValueError unless query, cache and page table fit together."""
    checks.shape("query", query, "n", "H", "d_h")
    checks.dtype("query", query, checks.FLOATS)
    checks.shape("key_pages", key_pages, "pages", "page size", "H_kv", query.shape[2])
    checks.shape("value_pages", value_pages, *key_pages.shape)
    checks.dtype("key_pages", key_pages, (query.dtype,))
    checks.dtype("value_pages", value_pages, (query.dtype,))
    if 0 in key_pages.shape[1:] or query.shape[1] == 0:
        raise ValueError("query must have heads; pages must have rows, heads and a width above 0")
    if query.shape[1] % key_pages.shape[2]:
        raise ValueError(
            f"{key_pages.shape[2]} cache heads do not divide {query.shape[1]} query heads"
        )
    checks.shape("page_table", page_table, "b", "max_pages")
    checks.dtype("page_table", page_table, checks.INTEGERS)
    checks.compatible(
        query=query, key_pages=key_pages, value_pages=value_pages, page_table=page_table
    )
    checks.no_gradient(query, key_pages, value_pages)


def check_pages(name: str, lengths: Tensor, page_table: Tensor, pages: Tensor) -> None:
    """Raises ValueError unless the page table lists pages of the cache for all of ``lengths``."""
    page_size = pages.shape[1]
    checks.indices(name, lengths, page_table.shape[1] * page_size + 1)
    found, table = checks.cpu_values(lengths), checks.cpu_values(page_table)
    if found is not None and table is not None:
        used = np.arange(0, table.shape[1] * page_size, page_size) < found[:, None]
        checks.in_range("page_table", table[used], len(pages))


def _check(*arguments: Any) -> None:
    query, key_pages, _, page_table, cu_seqlens, kv_lens, _ = arguments
    checks.ascending("cu_seqlens", cu_seqlens, len(query))
    check_pages("kv_lens", kv_lens, page_table, key_pages)
    cached, bounds = checks.cpu_values(kv_lens), checks.cpu_values(cu_seqlens)
    if cached is not None and bounds is not None and (cached < bounds[1:] - bounds[:-1]).any():
        raise ValueError("kv_lens must count the new rows too: one is smaller than their number")


def _fake(query: Tensor, *_: Any) -> Tensor:
    return query.new_empty(query.shape)


register("paged_attention", _fake, _check)
