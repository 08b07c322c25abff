"""The public function, its checks and its registration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retrv_kernels import checks
from retrv_kernels.torch_operator import accumulated, differentiable, register


def relate_tokens(
    relation_keys: Tensor,
    cu_seqlens: Tensor,
    query_keys: Tensor,
    cu_queries: Tensor,
    query_values: Tensor,
    output: Tensor,
    folded_queries: Tensor,
    candidate: Tensor | None = None,
    query: Tensor | None = None,
    *,
    scales: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Pools the rows R with which a candidate attends to a query, without storing R.

        pᵢₑⱼ = softmaxⱼ(kᵢₑ·qⱼₑ),   Rᵢ = Σₑⱼ pᵢₑⱼ Vⱼₑ,   rᵢ = Rᵢ ρᵢ,   a = softmaxᵢ(q̃ₕ·rᵢ)
        out[pair, h] = Σᵢ aᵢₕ rᵢ = Σₑⱼ (Σᵢ aᵢₕ ρᵢ pᵢₑⱼ) Vⱼₑ

    for candidate rows i, query rows j, heads e of ATT₂ and h of ATT₁, and ``Vⱼₑ = Wₑ vⱼₑ``. The
    score is ``ρᵢ Σₑⱼ pᵢₑⱼ (q̃ₕ·Vⱼₑ)``. With ``eps``, RMSNorm's factor is
    ``ρᵢ = 1 / √(|Rᵢ|²/d + eps)``; without, it is 1. For short queries ``|Rᵢ|²`` is
    ``pᵢ (V Vᵀ) pᵢ``; for long ones tiles of R are formed (`forms.py`). Both are exact up to
    rounding. The forward's memory grows linearly with rows of candidates and queries; the
    backward's with their product, because it keeps the weights ``p`` of all tiles.

    Args:
        relation_keys: rows of all candidates, ``[n, w]``, float32, float16 or bfloat16; or int8
            with scales. They depend only on the candidates: compute them once for a corpus.
        cu_seqlens: row offsets of the candidates, ``[m + 1]`` integers.
        query_keys: rows of all queries, ``[q, w]`` floats, already divided by √(w / E).
        cu_queries: row offsets of the queries, ``[g + 1]`` integers.
        query_values: ``vⱼₑ``, query row j after value projection of head e, ``[q, E, v]``.
        output: output projection ``Wₑ`` of ATT₂'s heads, ``[d, E, v]``.
        folded_queries: ``q̃`` of the pooling attention, ``[H, d]``.
        candidate, query: indices of each pair's candidate and query, ``[c]`` integers; if None,
            every candidate is paired with the only query, so c = m.
        scales: scales of int8 keys, ``[n]`` float32.
        eps: epsilon of R's norm; None for no norm.

    Returns:
        ``[c, H, d]`` float32, accumulated in float32; 0 if a pair's candidate or query has no rows.
        Differentiable in keys, values and queries; the backward recomputes the reference.

    Raises:
        ValueError: a shape or dtype is invalid; on a CPU also an offset or index.

    Source: Retrv-R1 (arXiv 2510.02745); its two attentions, rearranged.
    """
    checks.rows("relation_keys", relation_keys, scales)
    checks.offsets("cu_seqlens", cu_seqlens)
    checks.shape("query_keys", query_keys, "q", relation_keys.shape[1])
    checks.offsets("cu_queries", cu_queries)
    checks.shape("query_values", query_values, len(query_keys), "E", "v")
    heads, depth = query_values.shape[1:]
    if heads == 0 or depth == 0 or relation_keys.shape[1] % heads:
        raise ValueError(
            f"query_values [q, E, v] must have heads E that divide the keys' width "
            f"{relation_keys.shape[1]} and v > 0, not {list(query_values.shape)}"
        )
    checks.shape("output", output, "d", heads, depth)
    width = len(output)
    if width == 0:
        raise ValueError("output must be [d, E, v] with d > 0")
    checks.shape("folded_queries", folded_queries, "H", width)
    if len(folded_queries) == 0:
        raise ValueError("folded_queries must be [H, d] with H > 0")
    for name, floats in (
        ("query_keys", query_keys),
        ("query_values", query_values),
        ("output", output),
        ("folded_queries", folded_queries),
    ):
        checks.dtype(name, floats, checks.FLOATS)
    if candidate is None and query is None:
        if len(cu_queries) != 2:
            raise ValueError(
                f"with {len(cu_queries) - 1} queries, give candidate and query for each pair"
            )
        candidate = torch.arange(len(cu_seqlens) - 1, device=cu_seqlens.device)
        query = torch.zeros_like(candidate)
    if candidate is None or query is None:
        raise ValueError("give candidate and query, both or neither")
    checks.shape("candidate", candidate, "c")
    checks.shape("query", query, len(candidate))
    checks.dtype("candidate", candidate, checks.INTEGERS)
    checks.dtype("query", query, checks.INTEGERS)
    checks.compatible(
        relation_keys=relation_keys,
        cu_seqlens=cu_seqlens,
        query_keys=query_keys,
        cu_queries=cu_queries,
        query_values=query_values,
        output=output,
        folded_queries=folded_queries,
        candidate=candidate,
        query=query,
        scales=scales,
    )
    if eps is not None:
        checks.not_negative("eps", eps)
    return torch.ops.retrv_kernels.relate_tokens(
        relation_keys,
        cu_seqlens,
        query_keys,
        cu_queries,
        query_values,
        output,
        folded_queries,
        candidate,
        query,
        scales,
        eps,
    )


def _fake(*arguments: Any) -> Tensor:
    keys, _, _, _, values, _, queries, candidate, *_ = arguments
    return keys.new_empty((candidate.shape[0], *queries.shape), dtype=accumulated(values))


def _check(*arguments: Any) -> None:
    keys, cu_seqlens, query_keys, cu_queries, _, _, _, candidate, query, *_ = arguments
    checks.ascending("cu_seqlens", cu_seqlens, len(keys))
    checks.ascending("cu_queries", cu_queries, len(query_keys))
    checks.indices("candidate", candidate, len(cu_seqlens) - 1)
    checks.indices("query", query, len(cu_queries) - 1)


register("relate_tokens", _fake, _check)
differentiable(
    "relate_tokens",
    ("relation_keys", "query_keys", "query_values", "output", "folded_queries"),
)
