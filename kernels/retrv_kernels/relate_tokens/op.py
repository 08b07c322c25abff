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
    folded_values: Tensor,
    folded_queries: Tensor,
    candidate: Tensor | None = None,
    query: Tensor | None = None,
    *,
    scales: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Pools the rows R with which a candidate attends to a query, without forming R.

        pᵢₑⱼ = softmaxⱼ(kᵢₑ·qⱼₑ),   Rᵢ = Σₑⱼ pᵢₑⱼ Vⱼₑ,   rᵢ = Rᵢ ρᵢ,   a = softmaxᵢ(q̃ₕ·rᵢ)
        out[pair, h] = Σᵢ aᵢₕ rᵢ = Σₑⱼ (Σᵢ aᵢₕ ρᵢ pᵢₑⱼ) Vⱼₑ

    for candidate rows i, query rows j, heads e of ATT₂ and h of ATT₁. The score is
    ``ρᵢ Σₑⱼ pᵢₑⱼ (q̃ₕ·Vⱼₑ)``. With ``eps``, RMSNorm's factor is ``ρᵢ = 1 / √(|Rᵢ|²/d + eps)``, where
    ``|Rᵢ|² = pᵢ (V Vᵀ) pᵢ`` is exact up to rounding. Without ``eps``, ρᵢ is 1.

    Args:
        relation_keys: rows of all candidates, ``[n, w]``, float32, float16 or bfloat16; or int8
            with scales. They depend only on the candidates: compute them once for a corpus.
        cu_seqlens: row offsets of the candidates, ``[m + 1]`` integers.
        query_keys: rows of all queries, ``[q, w]`` floats, already divided by √(w / E).
        cu_queries: row offsets of the queries, ``[g + 1]`` integers.
        folded_values: ``Vⱼₑ``, query row j after value and output projection of head e,
            ``[q, E, d]``.
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
    checks.shape("folded_values", folded_values, len(query_keys), "E", "d")
    heads, width = folded_values.shape[1:]
    if heads == 0 or width == 0 or relation_keys.shape[1] % heads:
        raise ValueError(
            f"folded_values [q, E, d] must have heads E that divide the keys' width "
            f"{relation_keys.shape[1]} and d > 0, not {list(folded_values.shape)}"
        )
    checks.shape("folded_queries", folded_queries, "H", width)
    if len(folded_queries) == 0:
        raise ValueError("folded_queries must be [H, d] with H > 0")
    for name, floats in (
        ("query_keys", query_keys),
        ("folded_values", folded_values),
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
        folded_values=folded_values,
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
        folded_values,
        folded_queries,
        candidate,
        query,
        scales,
        eps,
    )


def _fake(*arguments: Any) -> Tensor:
    keys, _, _, _, values, queries, candidate, *_ = arguments
    return keys.new_empty((candidate.shape[0], *queries.shape), dtype=accumulated(values))


def _check(*arguments: Any) -> None:
    keys, cu_seqlens, query_keys, cu_queries, _, _, candidate, query, *_ = arguments
    checks.ascending("cu_seqlens", cu_seqlens, len(keys))
    checks.ascending("cu_queries", cu_queries, len(query_keys))
    checks.indices("candidate", candidate, len(cu_seqlens) - 1)
    checks.indices("query", query, len(cu_queries) - 1)


register("relate_tokens", _fake, _check)
differentiable("relate_tokens", ("relation_keys", "query_keys", "folded_values", "folded_queries"))
