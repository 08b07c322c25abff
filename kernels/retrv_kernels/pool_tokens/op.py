"""The public function, its checks and its registration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retrv_kernels import checks
from retrv_kernels.torch_operator import accumulated, differentiable, register


def pool_tokens(
    features: Tensor,
    cu_seqlens: Tensor,
    folded_queries: Tensor,
    *,
    scales: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Pools the RMS-normed rows of each item under fixed queries: ATT₁ before its value projection.

        yᵢ = xᵢ / √(mean(xᵢ²) + eps),   a = softmaxᵢ(q̃ₕ·yᵢ),   out[item, h] = Σᵢ aᵢₕ yᵢ

    Keys and values need no projection: ``q̃ₕ = W_k,h (e W_q)ₕ / √d_h`` depends on the weights only,
    and the value projection comes after the pooling. The norm's weight folds into ``q̃`` and into
    the value projection. The features are read once.

    Args:
        features: rows of all items, ``[n, d]``, float32, float16 or bfloat16; or int8 with scales.
        cu_seqlens: row offsets of the items, ``[m + 1]`` integers; the result of an
            item without rows is 0.
        folded_queries: ``q̃`` with the norm's weight folded in, ``[H, d]`` floats.
        scales: scales of int8 rows, ``[n]`` float32: row i is ``scales[i] · features[i]``.
        eps: epsilon of the norm, in units of features².

    Returns:
        ``[m, H, d]`` float32, accumulated in float32. Differentiable in features and queries; the
        backward recomputes the reference.

    Raises:
        ValueError: a shape or dtype is invalid; on a CPU also an offset.

    Source: Retrv-R1 (arXiv 2510.02745); its attention with one query row, rearranged.
    """
    checks.rows("features", features, scales)
    checks.offsets("cu_seqlens", cu_seqlens)
    checks.shape("folded_queries", folded_queries, "H", features.shape[1])
    checks.dtype("folded_queries", folded_queries, checks.FLOATS)
    if len(folded_queries) == 0:
        raise ValueError("folded_queries must be [H, d] with H > 0")
    checks.compatible(
        features=features, cu_seqlens=cu_seqlens, folded_queries=folded_queries, scales=scales
    )
    checks.not_negative("eps", eps)
    return torch.ops.retrv_kernels.pool_tokens(features, cu_seqlens, folded_queries, scales, eps)


def _fake(features: Tensor, cu_seqlens: Tensor, folded_queries: Tensor, *_: Any) -> Tensor:
    size = (cu_seqlens.shape[0] - 1, *folded_queries.shape)
    return features.new_empty(size, dtype=accumulated(folded_queries))


def _check(features: Tensor, cu_seqlens: Tensor, *_: Any) -> None:
    checks.ascending("cu_seqlens", cu_seqlens, len(features))


register("pool_tokens", _fake, _check)
differentiable("pool_tokens", ("features", "folded_queries"))
