"""The information compression module: a candidate's rows become two tokens.

    ATT(Q, K, V) = concat_h softmax((Q W_q)_h (K W_k)_hᵀ / √d_h) (V W_v)_h · W_o
    t_con = ATT₁(e_con, T_c, T_c)
    R     = ATT₂(T_c, T_q, T_q)
    t_rel = ATT₁(e_con, R, R)

from Retrv-R1 (arXiv 2510.02745); heads, norms and widths are ours (DESIGN §3). Inputs are
RMS-normed per row; a final RMSNorm and a learned scale give both tokens the size of ordinary
embeddings. One query row pools many, so ATT₁ needs no keys and values of its rows, and R is never
formed: this is the folded form, on :mod:`retrv_kernels.ops`; :mod:`retrv_r1.model.icm_reference` is
the equations as they stand. Two additions, off unless the config asks for them, that a small model
needs (docs/LOG.md): :class:`Memory` says what a content token resembles, and agreement,

    t_rel += W_a (x_c ⊙ x_q),    x = [norm(t_con), code(t_con)],

says how alike candidate and query are, which softmax weights over the query's rows cannot.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from retrv_kernels import ops
from retrv_kernels.ragged import quantize, take_items
from retrv_r1.model.config import ICMConfig
from retrv_r1.model.icm_layers import Attention, Memory, Pool


class InformationCompressor(nn.Module):
    """Compresses ragged candidates into content and relation tokens.

    Attributes:
        int8_keys: round relation keys to int8 where no gradient is needed, as an index stores them.
    """

    def __init__(self, hidden_size: int, config: ICMConfig) -> None:
        super().__init__()
        self.config = config
        self.int8_keys = False
        relate_dim = config.relate_dim or hidden_size // 4
        self.row_norm = nn.RMSNorm(hidden_size, config.norm_eps)
        self.pool = Pool(hidden_size, config.heads_pool)
        self.relate = Attention(hidden_size, config.heads_relate, relate_dim)
        self.relation_norm = (
            nn.RMSNorm(hidden_size, config.norm_eps) if config.norm_relation else nn.Identity()
        )
        self.relation_pool = (
            Pool(hidden_size, config.heads_pool) if config.separate_relation_pool else None
        )
        # Final norms: their weight is the learned scale.
        self.content_norm = nn.RMSNorm(hidden_size, config.norm_eps)
        self.relation_token_norm = nn.RMSNorm(hidden_size, config.norm_eps)
        self.memory = Memory(hidden_size, config) if config.memory_size else None
        compared = hidden_size + (self.memory.codes.shape[1] if self.memory else 0)
        self.agree = nn.Linear(compared, hidden_size, bias=False) if config.agreement else None

    @torch.no_grad()
    def reset_parameters(self, initializer_range: float, token_scale: float) -> None:
        """Fresh weights; ``token_scale`` is the RMS of the backbone's token embeddings.

        By ``nn.init`` alone: while a checkpoint loads, transformers keeps those functions, and
        only those, from touching what has been loaded.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=initializer_range)
            elif isinstance(module, Pool):
                nn.init.normal_(module.embedding)
            elif isinstance(module, nn.RMSNorm):
                nn.init.ones_(module.weight)
            elif isinstance(module, Memory):
                nn.init.normal_(module.prototypes)
                nn.init.normal_(module.codes)
        for norm in (self.content_norm, self.relation_token_norm):
            nn.init.constant_(norm.weight, token_scale)
        if self.memory is not None:  # codes as large as the tokens that they are added to
            width, hidden = self.memory.out.in_features, self.memory.out.out_features
            nn.init.orthogonal_(self.memory.out.weight, gain=token_scale * (hidden / width) ** 0.5)
        if self.agree is not None:  # one direction: how alike the tokens and their codes are
            nn.init.constant_(self.agree.weight, 3 * token_scale / self.agree.out_features)

    def forget(self) -> None:
        """Drops what is kept of the weights: for who has written through ``parameter.data``."""
        for module in self.modules():
            if isinstance(module, Pool | Memory):
                module.kept.forget()

    def tokens(
        self, features: Tensor, cu_seqlens: Tensor, candidate: Tensor, query: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Content and relation tokens, ``[m, d]`` and ``[c, d]``: what both need is made once.

        Args as of :meth:`relation`.
        """
        pooled = self.pooled(features, cu_seqlens)
        code = None if self.memory is None else self.memory.code(pooled)
        content = pooled if self.memory is None else pooled + self.memory.out(code)
        related = self._related(features, cu_seqlens, candidate, query)
        return content, self._agreeing(related, pooled, code, candidate, query)

    def content(self, features: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Content tokens of packed items: what :meth:`pooled` gives, and what it resembles.

        Args and result as there.
        """
        return self.recall(self.pooled(features, cu_seqlens))

    def recall(self, pooled: Tensor) -> Tensor:
        """Content tokens ``[m, d]`` of pooled ones ``[m, d]``."""
        return pooled if self.memory is None else pooled + self.memory(pooled)

    def pooled(self, features: Tensor, cu_seqlens: Tensor) -> Tensor:
        """The equation's content tokens of packed items, nothing added.

        Args:
            features: rows of all items, ``[n, d]``.
            cu_seqlens: row offsets, ``[m + 1]``; every item has at least one row.
        Returns:
            ``[m, d]``.
        """
        queries = self.pool.folded_queries(self.row_norm.weight)
        offsets = cu_seqlens.to(features.device, non_blocking=True)
        pooled = ops.pool_tokens(features, offsets, queries, eps=self.config.norm_eps)
        return self.content_norm(self.pool.token(pooled, self.row_norm.weight))

    def relation_keys(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """What relation tokens need of candidates' rows ``[n, d]``, whatever the query.

        Returns:
            ``[n, relate_dim]``, and the rows' scales ``[n]`` where they are int8.
        """
        keys = self.relate.q_proj(self.row_norm(features))
        return quantize(keys) if self.int8_keys and not torch.is_grad_enabled() else (keys, None)

    def relation(
        self, features: Tensor, cu_seqlens: Tensor, candidate: Tensor, query: Tensor
    ) -> Tensor:
        """Relation tokens of (candidate, query) pairs of packed items.

        Args:
            candidate: item number of each pair's candidate, ``[c]``.
            query: item number of each pair's query, ``[c]``.
        All three index tensors are best on the CPU: on a device they are waited for.

        Returns:
            ``[c, d]``.
        """
        related = self._related(features, cu_seqlens, candidate, query)
        if self.agree is None:
            return related
        pooled = self.pooled(features, cu_seqlens)
        code = None if self.memory is None else self.memory.code(pooled)
        return self._agreeing(related, pooled, code, candidate, query)

    def _related(
        self, features: Tensor, cu_seqlens: Tensor, candidate: Tensor, query: Tensor
    ) -> Tensor:
        """The equation's relation tokens, nothing added."""
        keys, scales = self.relation_keys(features)
        cu_seqlens, candidate, query = (x.cpu().long() for x in (cu_seqlens, candidate, query))
        asked, place = query.unique(return_inverse=True)
        if len(asked) == 1:
            first, stop = cu_seqlens[asked[0] : asked[0] + 2].tolist()
            rows, offsets = features[first:stop], torch.tensor([0, stop - first])
        else:
            rows, offsets = take_items(features, cu_seqlens, asked)
        rows = self.row_norm(rows)
        index = (cu_seqlens, offsets, candidate, place)
        cu_seqlens, offsets, candidate, place = _together(index, features.device)
        pool = self.relation_pool or self.pool
        norm = self.relation_norm.weight if isinstance(self.relation_norm, nn.RMSNorm) else None
        pooled = ops.relate_tokens(
            keys,
            cu_seqlens,
            self.relate.k_proj(rows) * self.relate.scale,
            offsets,
            self.relate.folded_values(rows),
            pool.folded_queries(norm),
            candidate,
            place,
            scales=scales,
            eps=None if norm is None else self.config.norm_eps,
        )
        return self.relation_token_norm(pool.token(pooled, norm))

    def _agreeing(
        self, token: Tensor, pooled: Tensor, code: Tensor | None, candidate: Tensor, query: Tensor
    ) -> Tensor:
        """Relation tokens and what agreement adds, of pooled tokens ``[m, d]`` and their codes."""
        if self.agree is None:
            return token
        normed = nn.functional.rms_norm(pooled, pooled.shape[-1:], eps=self.config.norm_eps)
        compared = normed if code is None else torch.cat([normed, code], -1)
        one, other = _together((candidate, query), pooled.device)
        return token + self.agree(compared[one] * compared[other])


def _together(tensors: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Indices on a device, by one copy that does not wait for what the device has still to do.

    Each begins at a multiple of 16 bytes, or a kernel would be compiled for either case.
    """
    if device.type == "cpu" or all(tensor.device == device for tensor in tensors):
        return tensors
    padded = [nn.functional.pad(tensor.cpu().long(), (0, len(tensor) % 2)) for tensor in tensors]
    parts = torch.cat(padded).to(device, non_blocking=True).split([len(part) for part in padded])
    return [part[: len(tensor)] for part, tensor in zip(parts, tensors, strict=True)]
