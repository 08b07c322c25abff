"""The compressor's equations computed literally: every row is projected, and R is formed.

Tests and the benchmark compare the folded form with it; nothing else uses it.
"""

from __future__ import annotations

from torch import Tensor, nn

from retrv_kernels.ragged import pad_rows
from retrv_r1.model.icm import InformationCompressor
from retrv_r1.model.icm_layers import Attention, Pool


def weigh(
    attention: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, fused: bool
) -> Tensor:
    """Weighted values ``[b, m, d]``: attention before the output projection.

    Args:
        q, k, v: projected queries ``[b, m, w]``, keys ``[b, n, w]`` and values ``[b, n, d]``.
        mask: which rows are real, ``[b, n]``; None if all are.
        fused: whether PyTorch's attention is used instead of products and a softmax.
    """
    q, k, v = (attention.by_head(x).transpose(1, 2) for x in (q, k, v))
    seen = None if mask is None else mask[:, None, None, :]
    if fused:
        out = nn.functional.scaled_dot_product_attention(q, k, v, seen)
    else:
        scores = q @ k.transpose(2, 3) * attention.scale
        out = (scores if seen is None else scores.masked_fill(~seen, float("-inf"))).softmax(-1) @ v
    return out.transpose(1, 2).flatten(2)


def attend(
    attention: Attention, query: Tensor, rows: Tensor, mask: Tensor | None, fused: bool = True
) -> Tensor:
    """ATT of ``query [b, m, d]`` over the rows ``[b, n, d]`` for which ``mask [b, n]`` is true."""
    q, k, v = attention.q_proj(query), attention.k_proj(rows), attention.v_proj(rows)
    return attention.o_proj(weigh(attention, q, k, v, mask, fused))


def pool(module: Pool, rows: Tensor, mask: Tensor | None, fused: bool = True) -> Tensor:
    """ATT₁ of the learned embedding over normed rows: ``[b, n, d]`` → ``[b, d]``."""
    query = module.embedding.expand(rows.shape[0], 1, -1)
    return attend(module.attention, query, rows, mask, fused).squeeze(1)


def pooled(icm: InformationCompressor, features: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The same as :meth:`InformationCompressor.pooled`."""
    rows, mask = pad_rows(icm.row_norm(features), cu_seqlens)
    return icm.content_norm(pool(icm.pool, rows, mask))


def relation(
    icm: InformationCompressor,
    features: Tensor,
    cu_seqlens: Tensor,
    candidate: Tensor,
    query: Tensor,
) -> Tensor:
    """The same as :meth:`InformationCompressor.relation` without agreement."""
    rows, mask = pad_rows(icm.row_norm(features), cu_seqlens)
    longest = int(mask[query].sum(-1).max())
    related = attend(icm.relate, rows[candidate], rows[query, :longest], mask[query, :longest])
    own = icm.relation_pool or icm.pool
    return icm.relation_token_norm(pool(own, icm.relation_norm(related), mask[candidate]))
