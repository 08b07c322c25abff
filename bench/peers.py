"""What the operations are compared with: the paper's equations and PyTorch's own attention.

    ATT(Q, K, V) = concat_h softmax((Q W_q)_h (K W_k)_hᵀ / √d_h) (V W_v)_h · W_o

The direct forms project every row, as the equations stand; the folded arguments of our operations
come from the same weights, so that both compute the same token and the check proves it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from retrv_kernels.ops import Span


@dataclass(frozen=True)
class Attention:
    """Weights of ATT; they multiply from the right.

    Args:
        w_q, w_k: ``[d, w]``.
        w_v, w_o: ``[d, d]``.
    """

    w_q: Tensor
    w_k: Tensor
    w_v: Tensor
    w_o: Tensor
    heads: int

    @classmethod
    def random(
        cls, width: int, key_width: int, heads: int, generator: torch.Generator
    ) -> Attention:
        """Rows of size 1 keep their size."""

        def random(out: int) -> Tensor:
            return torch.randn(width, out, generator=generator) * width**-0.5

        return cls(random(key_width), random(key_width), random(width), random(width), heads)

    def to(self, to: str | torch.dtype) -> Attention:
        """As ``Tensor.to``."""
        weights = {name: getattr(self, name).to(to) for name in ("w_q", "w_k", "w_v", "w_o")}
        return replace(self, **weights)

    def folded_queries(self, embedding: Tensor) -> Tensor:
        """``q̃_h = W_k,h (e W_q)_h / √d_h`` of ``e [d]``, ``[H, d]``."""
        query = (embedding @ self.w_q).unflatten(0, (self.heads, -1))
        keys = self.w_k.unflatten(1, (self.heads, -1))
        return torch.einsum("dhe,he->hd", keys, query) / query.shape[-1] ** 0.5

    def query_keys(self, rows: Tensor) -> Tensor:
        """Keys of a query's rows ``[q, d]``, divided by √d_h, ``[q, w]``."""
        return rows @ self.w_k / (self.w_k.shape[1] / self.heads) ** 0.5

    def folded_values(self, rows: Tensor) -> Tensor:
        """``(T_q W_v)_h W_o,h`` of rows ``[q, d]``, ``[q, H, d]``."""
        values = (rows @ self.w_v).unflatten(-1, (self.heads, -1))
        return torch.einsum("qhe,hed->qhd", values, self.w_o.unflatten(0, (self.heads, -1)))

    def project(self, pooled: Tensor) -> Tensor:
        """Value and output projection of rows that each head has pooled, ``[m, H, d]`` → [m, d]."""
        values = torch.einsum("mhd,dhe->mhe", pooled, self.w_v.unflatten(1, (self.heads, -1)))
        return values.flatten(1) @ self.w_o


def content_token(
    att: Attention, embedding: Tensor, rows: Tensor, eps: float, sdpa: bool
) -> Tensor:
    """``ATT(e, T_c, T_c)`` of RMS-normed rows ``[m, n, d]``, ``[m, d]``.

    Args:
        sdpa: by PyTorch's fused attention instead of products and a softmax.
    """
    rows = nn.functional.rms_norm(rows, rows.shape[-1:], eps=eps)
    query = (embedding @ att.w_q).expand(len(rows), 1, -1)
    pooled = attend(query, rows @ att.w_k, rows @ att.w_v, att.heads, sdpa)
    return (pooled @ att.w_o).squeeze(1)


def relation_token(
    pool: Attention,
    embedding: Tensor,
    relate: Attention,
    relation_keys: Tensor,
    query_keys: Tensor,
    query_values: Tensor,
    eps: float | None,
    sdpa: bool,
) -> Tensor:
    """``ATT₁(e, R, R)`` with ``R = ATT₂(T_c, T_q, T_q)`` formed, ``[m, d]``.

    Args:
        relation_keys: ``T_c W_q`` of ATT₂, ``[m, n, w]``.
        query_keys: as :meth:`Attention.query_keys`.
        query_values: ``T_q W_v`` of ATT₂, ``[q, d]``.
        eps: of R's norm; None for no norm.
    """
    keys, values = (x.expand(len(relation_keys), -1, -1) for x in (query_keys, query_values))
    related = attend(relation_keys, keys, values, relate.heads, sdpa, scale=1.0) @ relate.w_o
    if eps is not None:
        related = nn.functional.rms_norm(related, related.shape[-1:], eps=eps)
    query = (embedding @ pool.w_q).expand(len(related), 1, -1)
    pooled = attend(query, related @ pool.w_k, related @ pool.w_v, pool.heads, sdpa)
    return (pooled @ pool.w_o).squeeze(1)


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    heads: int,
    sdpa: bool,
    scale: float | None = None,
) -> Tensor:
    """``query [m, n, w]``, ``keys [m, k, w]``, ``values [m, k, d]`` → ``[m, n, d]``."""
    query, keys, values = (
        x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, keys, values)
    )
    if sdpa:
        out = nn.functional.scaled_dot_product_attention(query, keys, values, scale=scale)
    else:
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        out = (query @ keys.transpose(2, 3) * scale).softmax(-1) @ values
    return out.transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class Dense:
    """Sequences of a paged cache as PyTorch's attention takes them, padded to the longest.

    Args:
        query: ``[b, H, new, d_h]``.
        keys, values: ``[b, H_kv, cached, d_h]``.
        sees: ``[b, 1, new, cached]``, None where every row sees all.
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
        """Of sequences that all have ``new`` of ``cached`` rows; arguments of paged_attention."""
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
        """``[n, H, d_h]`` by scaled_dot_product_attention, grouped queries left to it."""
        out = nn.functional.scaled_dot_product_attention(
            self.query, self.keys, self.values, self.sees, enable_gqa=True
        )
        return out.transpose(1, 2).flatten(0, 1)

    def flex(self) -> Callable[[], Tensor]:
        """The same by flex_attention, compiled at the first call; uncompiled it is for tests."""
        attention, mask = None, None

        def call() -> Tensor:
            nonlocal attention, mask
            if attention is None:
                attention, mask = self._compiled_flex()
            out = attention(self.query, self.keys, self.values, block_mask=mask, enable_gqa=True)
            return out.transpose(1, 2).flatten(0, 1)

        return call

    def _compiled_flex(self) -> tuple[Callable[..., Tensor], Any]:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        new, cached = self.query.shape[2], self.keys.shape[2]
        mask = None
        if self.sees is not None:
            mask = create_block_mask(
                lambda batch, head, row, column: column <= row + cached - new,
                B=None,
                H=None,
                Q_LEN=new,
                KV_LEN=cached,
                device=self.query.device.type,
            )
        return torch.compile(flex_attention, dynamic=False), mask

    def paged(self, page_size: int) -> dict[str, Tensor]:
        """Arguments of paged_attention: every sequence on pages of its own."""
        batch, _, cached, _ = self.keys.shape
        pages = -(-cached // page_size)
        pad = pages * page_size - cached
        key_pages, value_pages = (
            nn.functional.pad(x.transpose(1, 2), (0, 0, 0, 0, 0, pad))
            .unflatten(1, (pages, page_size))
            .flatten(0, 1)
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
    """splice_features as one would write it in PyTorch: a cat of slices, the numbers in one go."""
    embeds = torch.cat([stores[span.store][span.row : span.row + span.length] for span in spans])
    table = torch.tensor(spans, device=page_table.device)
    owner = torch.arange(len(spans), device=table.device).repeat_interleave(table[:, 2])
    _, _, _, position, width, sequence, slot = table[owner].T
    k = torch.arange(len(owner), device=table.device) - (table[:, 2].cumsum(0) - table[:, 2])[owner]
    across = width.clamp(min=1)
    grid = torch.stack([torch.zeros_like(k), k // across, k % across])
    places = slot + k
    pages = page_table[sequence, places // page_size]
    return (
        embeds,
        position + torch.where(width > 0, grid, k),
        pages * page_size + places % page_size,
    )
