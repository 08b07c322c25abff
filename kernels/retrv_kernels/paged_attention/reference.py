"""The equation, one sequence at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from retrv_kernels.ragged import widen


def paged_attention(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    cu_seqlens: Tensor,
    kv_lens: Tensor,
    scale: float,
) -> Tensor:
    """Reference for `retrv_kernels.ops.paged_attention`."""
    out = [query.new_empty(0, *query.shape[1:])]
    bounds = cu_seqlens.tolist()
    for b, length in enumerate(kv_lens.tolist()):
        rows = query[bounds[b] : bounds[b + 1]]
        keys, values = (
            cached_rows(pages, page_table[b], length) for pages in (key_pages, value_pages)
        )
        prefix = length - len(rows)
        sees = torch.ones(len(rows), length, dtype=torch.bool, device=query.device).tril(prefix)
        out.append(attend(rows, keys, values, sees, scale))
    return torch.cat(out)


def cached_rows(pages: Tensor, table: Tensor, length: int) -> Tensor:
    """The first ``length`` rows of the pages in ``table``, ``[length, H_kv, d_h]``."""
    page_size = pages.shape[1]
    return pages[table[: -(-length // page_size)].long()].flatten(0, 1)[:length]


def attend(query: Tensor, keys: Tensor, values: Tensor, sees: Tensor, scale: float) -> Tensor:
    """Attention of ``query [n, H, d_h]`` over ``keys`` and ``values [m, H_kv, d_h]``.

    Args:
        sees: keys that each row sees, ``[n, m]``; the result of a row that sees none is 0.
    """
    group = query.shape[1] // keys.shape[1]
    keys, values = (widen(x).repeat_interleave(group, dim=1) for x in (keys, values))
    scores = torch.einsum("nhd,mhd->hnm", widen(query), keys) * scale
    weights = scores.masked_fill(~sees, float("-inf")).softmax(-1).where(sees, 0)
    return torch.einsum("hnm,mhd->nhd", weights, values).to(query.dtype)
