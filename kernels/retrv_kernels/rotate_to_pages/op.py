"""The public function, its checks and its registration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retrv_kernels import checks
from retrv_kernels.torch_operator import register


def rotate_to_pages(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    slots: Tensor,
    heads: int,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Rotates new queries and keys to their positions; writes keys and values into the cache.

    A head x becomes ``x cos + (x₂, x₁) sin``, where x₁ and x₂ are its halves. If norms are given,
    as in Qwen3, each head of the queries and keys is RMS-normed first.

    Args:
        qkv: query, key and value heads of the new rows, ``[n, H + 2 H_kv, d_h]``, float32, float16
            or bfloat16, d_h even.
        cos, sin: cosines and sines of the rows' positions, ``[n, 1, d_h]``, dtype of qkv; the
            first half of sin is negated.
        key_pages, value_pages: the cache, ``[pages, page size, H_kv, d_h]``, dtype of qkv, with
            equal strides and contiguous columns. **Written in place.**
        slots: slot of each row in the cache, page · page size + offset, ``[n]`` integers. If
            several rows have one slot, as padding may, any one of them is kept.
        heads: H, number of query heads.
        q_norm, k_norm: weights of the norms of queries and keys, ``[d_h]``, both or neither.
        eps: epsilon of the norms.

    Returns:
        The queries, ``[n, H, d_h]``. Not differentiable.

    Raises:
        ValueError: a shape, dtype or stride is invalid; on a CPU also a slot.

    Source: RoFormer (Su et al. 2021), with the two halves of GPT-NeoX.
    """
    checks.shape("key_pages", key_pages, "pages", "page size", "H_kv", "d_h")
    kv_heads, width = key_pages.shape[2:]
    if heads < 1 or 0 in key_pages.shape[1:] or width % 2:
        raise ValueError(
            "there must be query and cache heads of an even width, and pages with rows"
        )
    checks.shape("qkv", qkv, "n", heads + 2 * kv_heads, width)
    checks.dtype("qkv", qkv, checks.FLOATS)
    given = {"cos": cos, "sin": sin, "key_pages": key_pages, "value_pages": value_pages}
    if (q_norm is None) != (k_norm is None):
        raise ValueError("give q_norm and k_norm, both or neither")
    if q_norm is not None and k_norm is not None:
        checks.shape("q_norm", q_norm, width)
        checks.shape("k_norm", k_norm, width)
        given |= {"q_norm": q_norm, "k_norm": k_norm}
    checks.shape("cos", cos, len(qkv), 1, width)
    checks.shape("sin", sin, len(qkv), 1, width)
    checks.shape("value_pages", value_pages, *key_pages.shape)
    for name, tensor in given.items():
        checks.dtype(name, tensor, (qkv.dtype,))
    if key_pages.stride() != value_pages.stride() or key_pages.stride(3) != 1:
        raise ValueError("key_pages and value_pages must have equal strides, the last one 1")
    checks.shape("slots", slots, len(qkv))
    checks.dtype("slots", slots, checks.INTEGERS)
    checks.not_negative("eps", eps)
    checks.compatible(qkv=qkv, slots=slots, **given)
    checks.no_gradient(qkv, *given.values())
    return torch.ops.retrv_kernels.rotate_to_pages(
        qkv, cos, sin, key_pages, value_pages, slots, heads, q_norm, k_norm, eps
    )


def _check(*arguments: Any) -> None:
    _, _, _, key_pages, _, slots, *_ = arguments
    checks.indices("slots", slots, key_pages.shape[0] * key_pages.shape[1])


def _fake(qkv: Tensor, cos: Tensor, sin: Tensor, key_pages: Tensor, *_: Any) -> Tensor:
    heads = qkv.shape[1] - 2 * key_pages.shape[2]
    return qkv.new_empty((qkv.shape[0], heads, qkv.shape[2]))


register("rotate_to_pages", _fake, _check, writes=("key_pages", "value_pages"))
