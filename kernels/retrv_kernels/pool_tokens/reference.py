"""The equation. The tests compare with its result in float64."""

from __future__ import annotations

from torch import Tensor, nn

from retrv_kernels.ragged import dequantize, pad_rows, widen


def pool_tokens(
    features: Tensor,
    cu_seqlens: Tensor,
    folded_queries: Tensor,
    scales: Tensor | None,
    eps: float,
) -> Tensor:
    """Reference for `retrv_kernels.ops.pool_tokens`."""
    rows = dequantize(features, scales)
    rows = nn.functional.rms_norm(rows, rows.shape[-1:], eps=eps)
    rows, mask = pad_rows(rows, cu_seqlens)
    return pool_rows(rows @ widen(folded_queries).T, rows, mask)


def pool_rows(scores: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
    """Rows ``[m, n, d]`` weighted by the softmax of scores ``[m, n, H]``, as ``[m, H, d]``.

    Args:
        mask: real rows, ``[m, n]``; others get no weight.
    """
    scores = scores.masked_fill(~mask[..., None], float("-inf"))
    weights = scores.softmax(1).where(mask[..., None], 0)  # an item without rows would be NaN
    return weights.transpose(1, 2) @ rows
