"""What the operations are compared with: the paper's equations and PyTorch's attention."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retrv_kernels.ops import Span
from retrv_kernels.ragged import dequantize, widen
from retrv_kernels.relate_tokens.forms import folded_values
from retrv_r1.model import icm_reference
from retrv_r1.model.icm_layers import Attention, Pool


def content_token(pool: Pool, rows: Tensor, eps: float, fused: bool) -> Tensor:
    """``ATT₁(e, T_c, T_c)`` of RMS-normed rows ``[m, n, d]``, ``[m, d]``."""
    return icm_reference.pool(
        pool, nn.functional.rms_norm(rows, rows.shape[-1:], eps=eps), None, fused
    )


def relation_token(
    pool: Pool,
    relate: Attention,
    relation_keys: Tensor,
    query_keys: Tensor,
    query_values: Tensor,
    eps: float | None,
    fused: bool,
) -> Tensor:
    """``ATT₁(e, R, R)`` with ``R = ATT₂(T_c, T_q, T_q)`` formed, ``[m, d]``.

    Args:
        relation_keys: ``T_c W_q`` of ATT₂, ``[m, n, w]``.
        query_keys, query_values: ``T_q W_k`` and ``T_q W_v`` of ATT₂, ``[q, w]`` and ``[q, d]``.
        eps: epsilon of R's norm; None for no norm.
        fused: whether attention is PyTorch's scaled_dot_product_attention.
    """
    keys, values = (x.expand(len(relation_keys), -1, -1) for x in (query_keys, query_values))
    related = relate.o_proj(icm_reference.weigh(relate, relation_keys, keys, values, None, fused))
    if eps is not None:
        related = nn.functional.rms_norm(related, related.shape[-1:], eps=eps)
    return icm_reference.pool(pool, related, None, fused)


def folded_pool(
    features: Tensor, folded_queries: Tensor, scales: Tensor | None, eps: float, count: int
) -> Tensor:
    """pool_tokens for ``count`` items of one length, ``[count, H, d]``, without padding."""
    rows = dequantize(features, scales).unflatten(0, (count, -1))
    rows = nn.functional.rms_norm(rows, rows.shape[-1:], eps=eps)
    return (rows @ widen(folded_queries).T).softmax(1).transpose(1, 2) @ rows


def folded_relate(
    relation_keys: Tensor,
    query_keys: Tensor,
    query_values: Tensor,
    output: Tensor,
    folded_queries: Tensor,
    scales: Tensor | None,
    eps: float | None,
    count: int,
) -> Tensor:
    """relate_tokens for one query and ``count`` candidates of one length, ``[count, H, d]``."""
    weights = _weights(relation_keys, query_keys, query_values.shape[1], scales, count).flatten(2)
    values = widen(folded_values(query_values, output)).transpose(0, 1).flatten(0, 1)
    if eps is not None:
        squares = ((weights @ (values @ values.T)) * weights).sum(-1, keepdim=True)
        weights = weights * (squares.clamp(min=0) / values.shape[-1] + eps).rsqrt()
    scores = weights @ (values @ widen(folded_queries).T)
    return scores.softmax(1).transpose(1, 2) @ weights @ values


def direct_relate(
    relation_keys: Tensor,
    query_keys: Tensor,
    query_values: Tensor,
    output: Tensor,
    folded_queries: Tensor,
    scales: Tensor | None,
    eps: float | None,
    count: int,
) -> Tensor:
    """The same as `folded_relate`, with all of R formed; pooling is folded."""
    weights = _weights(relation_keys, query_keys, query_values.shape[1], scales, count)
    related = torch.einsum("cneq,qev->cnev", weights, widen(query_values)).flatten(2)
    related = related @ widen(output).flatten(1).T
    if eps is not None:
        related = nn.functional.rms_norm(related, related.shape[-1:], eps=eps)
    return (related @ widen(folded_queries).T).softmax(1).transpose(1, 2) @ related


def _weights(
    relation_keys: Tensor, query_keys: Tensor, heads: int, scales: Tensor | None, count: int
) -> Tensor:
    """ATT₂'s weights, ``[count, n, E, q]``."""
    rows = dequantize(relation_keys, scales).unflatten(0, (count, -1)).unflatten(-1, (heads, -1))
    keys = widen(query_keys).unflatten(-1, (heads, -1))
    return torch.einsum("cnew,qew->cneq", rows, keys).softmax(-1)


@dataclass(frozen=True)
class Dense:
    """Sequences of one length as PyTorch's attention takes them.

    Args:
        query: new rows, ``[b, H, new, d_h]``.
        keys, values: cached rows, ``[b, H_kv, cached, d_h]``.
        sees: cached rows that each new row sees, ``[b, 1, new, cached]``; None for all of them.
    """

    query: Tensor
    keys: Tensor
    values: Tensor
    sees: Tensor | None

    @classmethod
    def gather(
        cls,
        query: Tensor,
        key_pages: Tensor,
        value_pages: Tensor,
        page_table: Tensor,
        new: int,
        cached: int,
    ) -> Dense:
        """From arguments of paged_attention: ``cached`` rows a sequence, ``new`` of them new."""
        pages = page_table[:, : -(-cached // key_pages.shape[1])].long()
        keys, values = (
            x[pages].flatten(1, 2)[:, :cached].transpose(1, 2).contiguous()
            for x in (key_pages, value_pages)
        )
        rows = query.unflatten(0, (-1, new)).transpose(1, 2).contiguous()
        sees = None
        if new > 1:
            sees = torch.ones(new, cached, dtype=torch.bool, device=query.device)
            sees = sees.tril(cached - new).expand(len(rows), 1, -1, -1)
        return cls(rows, keys, values, sees)

    def sdpa(self) -> Tensor:
        """Result ``[n, H, d_h]`` of scaled_dot_product_attention with grouped queries."""
        out = nn.functional.scaled_dot_product_attention(
            self.query, self.keys, self.values, self.sees, enable_gqa=True
        )
        return out.transpose(1, 2).flatten(0, 1)

    def flex(self) -> Callable[[], Tensor]:
        """A function for the same result by flex_attention; its first call compiles."""
        mask: Any = None

        def call() -> Tensor:
            nonlocal mask
            if mask is None and self.sees is not None:
                mask = self._block_mask()
            out = _flex()(self.query, self.keys, self.values, block_mask=mask, enable_gqa=True)
            return out.transpose(1, 2).flatten(0, 1)

        return call

    def _block_mask(self) -> Any:
        from torch.nn.attention.flex_attention import create_block_mask

        new, cached = self.query.shape[2], self.keys.shape[2]
        return create_block_mask(
            lambda batch, head, row, column: column <= row + cached - new,
            B=None,
            H=None,
            Q_LEN=new,
            KV_LEN=cached,
            device=self.query.device.type,
        )

    def paged(self, page_size: int) -> dict[str, Tensor]:
        """Arguments of paged_attention in which every sequence has its own pages."""
        batch, _, cached, _ = self.keys.shape
        pages = -(-cached // page_size)
        pad = pages * page_size - cached
        # The rows of a head are contiguous within a page, as in the cases.
        key_pages, value_pages = (
            nn.functional.pad(x, (0, 0, 0, pad))
            .unflatten(2, (pages, page_size))
            .transpose(1, 2)
            .flatten(0, 1)
            .contiguous()
            .transpose(1, 2)
            for x in (self.keys, self.values)
        )
        device, new = self.query.device, self.query.shape[2]
        return {
            "query": self.query.transpose(1, 2).flatten(0, 1),
            "key_pages": key_pages,
            "value_pages": value_pages,
            "page_table": torch.arange(batch * pages, device=device).view(batch, pages).int(),
            "cu_seqlens": torch.arange(batch + 1, device=device).int() * new,
            "kv_lens": torch.full((batch,), cached, device=device).int(),
        }


def splice(
    stores: Sequence[Tensor], spans: Sequence[Span], page_table: Tensor, page_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """splice_features in PyTorch: concatenated slices; positions and slots in one expression."""
    embeds = torch.cat([stores[span.store][span.row : span.row + span.length] for span in spans])
    table = torch.tensor(spans, device=page_table.device)
    owner = torch.arange(len(spans), device=table.device).repeat_interleave(table[:, 2])
    _, _, _, position, width, sequence, slot, start = table[owner].T
    i = torch.arange(len(owner), device=table.device) - (table[:, 2].cumsum(0) - table[:, 2])[owner]
    k = start + i
    across = width.clamp(min=1)
    grid = torch.stack([torch.zeros_like(k), k // across, k % across])
    places = slot + i
    pages = page_table[sequence, places // page_size]
    return (
        embeds,
        position + torch.where(width > 0, grid, k),
        pages * page_size + places % page_size,
    )


@functools.cache
def _flex() -> Callable[..., Tensor]:
    """flex_attention, compiled once for each shape."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)
