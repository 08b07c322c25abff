"""The compressor's equations as they stand: every row projected, R formed.

What the folded form is compared with, in tests and in the benchmark; nothing else uses it.
"""

from __future__ import annotations

from torch import Tensor, nn

from retrv_kernels.ragged import pad_rows
from retrv_r1.model.icm import Attention, InformationCompressor, Pool


def attend(attention: Attention, query: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
    """ATT of ``query [b, m, d]`` over ``rows [b, n, d]``, real where ``mask [b, n]`` is true."""
    q, k, v = (
        attention.by_head(projection(x)).transpose(1, 2)
        for projection, x in (
            (attention.q_proj, query),
            (attention.k_proj, rows),
            (attention.v_proj, rows),
        )
    )
    out = nn.functional.scaled_dot_product_attention(q, k, v, mask[:, None, None, :])
    return attention.o_proj(out.transpose(1, 2).flatten(-2))


def pool(module: Pool, rows: Tensor, mask: Tensor) -> Tensor:
    """ATT₁ over its embedding: ``rows [b, n, d]``, already normed → ``[b, d]``."""
    query = module.embedding.expand(rows.shape[0], 1, -1)
    return attend(module.attention, query, rows, mask).squeeze(1)


def pooled(icm: InformationCompressor, features: Tensor, cu_seqlens: Tensor) -> Tensor:
    """What :meth:`InformationCompressor.pooled` gives."""
    rows, mask = pad_rows(icm.row_norm(features), cu_seqlens)
    return icm.content_norm(pool(icm.pool, rows, mask))


def relation(
    icm: InformationCompressor,
    features: Tensor,
    cu_seqlens: Tensor,
    candidate: Tensor,
    query: Tensor,
) -> Tensor:
    """What :meth:`InformationCompressor.relation` gives without agreement."""
    rows, mask = pad_rows(icm.row_norm(features), cu_seqlens)
    longest = int(mask[query].sum(-1).max())
    related = attend(icm.relate, rows[candidate], rows[query, :longest], mask[query, :longest])
    own = icm.relation_pool or icm.pool
    return icm.relation_token_norm(pool(own, icm.relation_norm(related), mask[candidate]))
