"""The information compression module: a candidate's rows become two tokens.

    ATT(Q, K, V) = concat_h softmax((Q W_q)_h (K W_k)_hᵀ / √d_h) (V W_v)_h · W_o
    t_con = ATT₁(e_con, T_c, T_c)
    R     = ATT₂(T_c, T_q, T_q)
    t_rel = ATT₁(e_con, R, R)

from Retrv-R1 (arXiv 2510.02745); heads, norms and widths are ours. Inputs are RMS-normed per row; a
final RMSNorm with a learned scale gives both tokens the RMS of ordinary embeddings. ATT₁ has a
single query, so its projections can be folded into it: rows need no keys and values, and R is never
formed. This is the folded form, on :mod:`retrv_kernels.ops`; the literal form is
:mod:`retrv_r1.model.icm_reference`.

The config can switch on two additions that a small model needs (docs/LOG.md). The memory
(:class:`~retrv_r1.model.icm_layers.Memory`) adds what a content token resembles. Agreement,

    t_rel += W_a (x_c ⊙ x_q),    x = [norm(t_con), code(t_con)],

adds how similar candidate and query are; softmax weights over the query's rows cannot express it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from retrv_kernels import ops
from retrv_kernels.ragged import quantize, take_items
from retrv_r1.model.config import ICMConfig
from retrv_r1.model.icm_layers import Attention, Memory, Pool


class Contents(NamedTuple):
    """Content tokens, and what the memory knows of them.

    Attributes:
        pooled: tokens by the equation, ``[m, d]``.
        reminds: softmax over the memory's prototypes, ``[m, n]``; None without a memory.
        code: their normed codes, ``[m, w]``; None without a memory.
    """

    pooled: Tensor
    reminds: Tensor | None = None
    code: Tensor | None = None


class InformationCompressor(nn.Module):
    """Compresses ragged candidates into content and relation tokens.

    Attributes:
        int8_keys: whether relation keys are rounded to int8, as an index stores them, where no
            gradient is needed.
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
        """Initializes all weights.

        It uses only functions of ``nn.init``: while a checkpoint is loaded, transformers keeps
        these, and no others, from changing what has been loaded.

        Args:
            initializer_range: standard deviation of linear weights.
            token_scale: RMS of the backbone's token embeddings.
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
                if module.basis is not None:  # they are not normed then
                    nn.init.orthogonal_(module.basis)
                    nn.init.normal_(module.prototypes, std=module.basis.shape[1] ** -0.5)
                nn.init.normal_(module.codes)
        for norm in (self.content_norm, self.relation_token_norm):
            nn.init.constant_(norm.weight, token_scale)
        if self.memory is not None:  # its output gets the RMS of the tokens that it is added to
            width, hidden = self.memory.out.in_features, self.memory.out.out_features
            nn.init.orthogonal_(self.memory.out.weight, gain=token_scale * (hidden / width) ** 0.5)
        if self.agree is not None:  # a single direction: the similarity of tokens and codes
            nn.init.constant_(self.agree.weight, 3 * token_scale / self.agree.out_features)

    def forget(self) -> None:
        """Drops tensors derived from weights, which is needed after writing ``parameter.data``."""
        for module in self.modules():
            if isinstance(module, Pool | Memory):
                module.derived.forget()

    def tokens(
        self,
        features: Tensor,
        cu_seqlens: Tensor,
        candidate: Tensor,
        query: Tensor,
        contents: Contents | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Content tokens ``[m, d]`` and relation tokens ``[c, d]``, sharing what both need.

        The arguments are those of :meth:`relation`.

        Args:
            contents: what :meth:`contents` gives, if that is known.
        """
        known = contents or self.contents(features, cu_seqlens)
        related = self._relation_by_equation(features, cu_seqlens, candidate, query)
        return self.with_memory(known), self._add_agreement(related, known, candidate, query)

    def content(self, features: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Content tokens ``[m, d]`` with the memory's part; the arguments are :meth:`pooled`'s."""
        return self.with_memory(self.contents(features, cu_seqlens))

    def contents(self, features: Tensor, cu_seqlens: Tensor) -> Contents:
        """Pooled tokens and what the memory knows of them; the arguments are :meth:`pooled`'s."""
        pooled = self.pooled(features, cu_seqlens)
        if self.memory is None:
            return Contents(pooled)
        reminds = self.memory.reminds(pooled)
        return Contents(pooled, reminds, self.memory.code(reminds))

    def with_memory(self, contents: Contents) -> Tensor:
        """Content tokens ``[m, d]``: the pooled ones, with the memory's part."""
        if self.memory is None:
            return contents.pooled
        return contents.pooled + self.memory(contents.code)

    def pooled(self, features: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Content tokens ``[m, d]`` of packed items by the equation, without the memory's part.

        Args:
            features: feature rows of all items, ``[n, d]``.
            cu_seqlens: row offsets of the items, ``[m + 1]``; every item has at least one row.
        """
        queries = self.pool.folded_queries(self.row_norm.weight)
        offsets = cu_seqlens.to(features.device, non_blocking=True)
        pooled = ops.pool_tokens(features, offsets, queries, eps=self.config.norm_eps)
        return self.content_norm(self.pool.token(pooled, self.row_norm.weight))

    def relation_keys(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Keys of candidates' rows ``[n, d]`` for relation tokens, the same for every query.

        Returns:
            Keys ``[n, relate_dim]``, and their scales ``[n]`` if they are int8.
        """
        keys = self.relate.q_proj(self.row_norm(features))
        return quantize(keys) if self.int8_keys and not torch.is_grad_enabled() else (keys, None)

    def relation(
        self, features: Tensor, cu_seqlens: Tensor, candidate: Tensor, query: Tensor
    ) -> Tensor:
        """Relation tokens ``[c, d]`` of (candidate, query) pairs of packed items.

        The three index tensors should be on the CPU; reading them from a device waits for it.

        Args:
            features: feature rows of all items, ``[n, d]``.
            cu_seqlens: row offsets of the items, ``[m + 1]``.
            candidate: item number of each pair's candidate, ``[c]``.
            query: item number of each pair's query, ``[c]``.
        """
        related = self._relation_by_equation(features, cu_seqlens, candidate, query)
        if self.agree is None:
            return related
        return self._add_agreement(related, self.contents(features, cu_seqlens), candidate, query)

    def _relation_by_equation(
        self, features: Tensor, cu_seqlens: Tensor, candidate: Tensor, query: Tensor
    ) -> Tensor:
        """Relation tokens by the equation, without agreement."""
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
        cu_seqlens, offsets, candidate, place = _copy_indices(index, features.device)
        pool = self.relation_pool or self.pool
        norm = self.relation_norm.weight if isinstance(self.relation_norm, nn.RMSNorm) else None
        pooled = ops.relate_tokens(
            keys,
            cu_seqlens,
            self.relate.k_proj(rows) * self.relate.scale,
            offsets,
            self.relate.by_head(self.relate.v_proj(rows)),
            self.relate.by_head(self.relate.o_proj.weight),
            pool.folded_queries(norm),
            candidate,
            place,
            scales=scales,
            eps=None if norm is None else self.config.norm_eps,
        )
        return self.relation_token_norm(pool.token(pooled, norm))

    def _add_agreement(
        self, token: Tensor, contents: Contents, candidate: Tensor, query: Tensor
    ) -> Tensor:
        """Adds agreement to relation tokens."""
        if self.agree is None:
            return token
        pooled, _, code = contents
        normed = nn.functional.rms_norm(pooled, pooled.shape[-1:], eps=self.config.norm_eps)
        compared = normed if code is None else torch.cat([normed, code], -1)
        one, other = _copy_indices((candidate, query), pooled.device)
        return token + self.agree(compared[one] * compared[other])


def _copy_indices(tensors: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Index tensors on a device, in one copy that does not wait for the device.

    Each begins at a multiple of 16 bytes; otherwise a kernel would be compiled for either case.
    """
    if device.type == "cpu" or all(tensor.device == device for tensor in tensors):
        return tensors
    padded = [nn.functional.pad(tensor.cpu().long(), (0, len(tensor) % 2)) for tensor in tensors]
    parts = torch.cat(padded).to(device, non_blocking=True).split([len(part) for part in padded])
    return [part[: len(tensor)] for part, tensor in zip(parts, tensors, strict=True)]
