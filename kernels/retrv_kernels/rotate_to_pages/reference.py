"""The equation, as a decoder layer computes it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import rms_norm


def rotate_to_pages(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    slots: Tensor,
    heads: int,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
) -> Tensor:
    """Reference for `retrv_kernels.ops.rotate_to_pages`."""
    page_size, kv_heads, width = key_pages.shape[1:]
    query, key, value = qkv.split([heads, kv_heads, kv_heads], 1)
    if q_norm is not None and k_norm is not None:
        query, key = rms_norm(query, (width,), q_norm, eps), rms_norm(key, (width,), k_norm, eps)
    rows = torch.cat([query, key], 1)
    rows = torch.addcmul(rows * cos, rows.roll(width // 2, -1), sin)
    query, key = rows.split([heads, kv_heads], 1)
    where = (slots // page_size).long(), (slots % page_size).long()
    key_pages[where] = key
    value_pages[where] = value
    return query.contiguous()
