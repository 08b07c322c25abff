"""The information compression module: a candidate's rows become two tokens (direct form).

    ATT(Q, K, V) = concat_h softmax((Q W_q)_h (K W_k)_hᵀ / √d_h) (V W_v)_h · W_o
    t_con = ATT₁(e_con, T_c, T_c)
    R     = ATT₂(T_c, T_q, T_q)
    t_rel = ATT₁(e_con, R, R)

from Retrv-R1 (arXiv 2510.02745); heads, norms and widths are ours (DESIGN §3). Inputs are
RMS-normed per row; a final RMSNorm and a learned scale give both tokens the size of ordinary
embeddings. Two additions, off unless the config asks for them, that a small model needs
(docs/LOG.md): :class:`Memory` says what a content token resembles, and agreement,

    t_rel += W_a (x_c ⊙ x_q),    x = [norm(t_con), code(t_con)],

says how alike candidate and query are, which softmax weights over the query's rows cannot.
:meth:`InformationCompressor.content` and :meth:`~InformationCompressor.relation` are the seam
behind which a folded form can stand.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retrv_r1.model.config import ICMConfig


def pad_rows(features: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """Splits packed rows ``[n, d]`` into ``[m, longest, d]`` and the mask of real rows.

    Offsets on the CPU, where their lengths are read, save a wait for the device.
    """
    offsets = cu_seqlens.cpu()
    lengths = offsets.diff()
    count, longest = len(lengths), int(lengths.max())
    # One scatter: a copy per item would have a backward of one whole-batch copy per item.
    owner = torch.arange(count).repeat_interleave(lengths)
    place = torch.arange(len(features)) + owner * longest - offsets[owner]
    rows = features.new_zeros(count * longest, features.shape[-1])
    rows = rows.index_copy(0, place.to(features.device), features).unflatten(0, (count, longest))
    mask = torch.arange(longest) < lengths[:, None]
    return rows, mask.to(features.device)


class Attention(nn.Module):
    """ATT of the equation above; queries and keys may be narrower than the values."""

    def __init__(self, hidden_size: int, heads: int, qk_dim: int) -> None:
        super().__init__()
        if hidden_size % heads or qk_dim % heads:
            raise ValueError(f"{heads} heads do not divide the widths {hidden_size} and {qk_dim}")
        self.heads = heads
        self.q_proj = nn.Linear(hidden_size, qk_dim, bias=False)
        self.k_proj = nn.Linear(hidden_size, qk_dim, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, query: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
        """``query [b, m, d]``, ``rows [b, n, d]``, ``mask [b, n]`` of real rows → ``[b, m, d]``."""
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, x in (
                (self.q_proj, query),
                (self.k_proj, rows),
                (self.v_proj, rows),
            )
        )
        out = nn.functional.scaled_dot_product_attention(q, k, v, mask[:, None, None, :])
        return self.o_proj(out.transpose(1, 2).flatten(-2))


class Pool(nn.Module):
    """One learned query row pools many rows into one token: ATT₁ with its embedding."""

    def __init__(self, hidden_size: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(hidden_size))
        self.attention = Attention(hidden_size, heads, hidden_size)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        """``rows [b, n, d]``, already normed → ``[b, d]``."""
        query = self.embedding.expand(rows.shape[0], 1, -1)
        return self.attention(query, rows, mask).squeeze(1)


class Memory(nn.Module):
    """What a content token resembles: a softmax over learned prototypes, each with a code.

        m(t) = W_m · norm(softmax(cos(t, P) / τ) C)

    Two unsure tokens may be alike and yet mean different things; their codes agree only as far as
    both resemble the same prototypes. A modern Hopfield layer (arXiv 2008.02217) whose values are
    not its keys.
    """

    def __init__(self, hidden_size: int, config: ICMConfig) -> None:
        super().__init__()
        width = config.memory_width or hidden_size // 2
        self.prototypes = nn.Parameter(torch.empty(config.memory_size, hidden_size))
        self.codes = nn.Parameter(torch.empty(config.memory_size, width))
        self.out = nn.Linear(width, hidden_size, bias=False)
        self.temperature, self.eps = config.memory_temperature, config.norm_eps

    def code(self, tokens: Tensor) -> Tensor:
        """Normed codes ``[m, w]`` of what tokens ``[m, d]`` resemble."""
        normalize = nn.functional.normalize
        likeness = normalize(tokens, dim=-1) @ normalize(self.prototypes, dim=-1).T
        read = (likeness / self.temperature).softmax(-1) @ self.codes
        return nn.functional.rms_norm(read, read.shape[-1:], eps=self.eps)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[m, d]`` → what is added to them, ``[m, d]``."""
        return self.out(self.code(tokens))


class InformationCompressor(nn.Module):
    """Compresses ragged candidates into content and relation tokens."""

    def __init__(self, hidden_size: int, config: ICMConfig) -> None:
        super().__init__()
        self.config = config
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
        rows, mask = pad_rows(self.row_norm(features), cu_seqlens)
        return self.content_norm(self.pool(rows, mask))

    def relation(
        self, features: Tensor, cu_seqlens: Tensor, candidate: Tensor, query: Tensor
    ) -> Tensor:
        """Relation tokens of (candidate, query) pairs of packed items.

        Args:
            candidate: item number of each pair's candidate, ``[c]``.
            query: item number of each pair's query, ``[c]``.
        Returns:
            ``[c, d]``.
        """
        if len(candidate) == 0:
            return features.new_zeros(0, features.shape[-1])
        rows, mask = pad_rows(self.row_norm(features), cu_seqlens)
        query_width = int(mask[query].sum(-1).max())
        related = self.relate(rows[candidate], rows[query, :query_width], mask[query, :query_width])
        pool = self.relation_pool or self.pool
        token = self.relation_token_norm(pool(self.relation_norm(related), mask[candidate]))
        if self.agree is None:
            return token
        compared = self._compared(self.content_norm(self.pool(rows, mask)))
        return token + self.agree(compared[candidate] * compared[query])

    def _compared(self, pooled: Tensor) -> Tensor:
        """The ``x`` of agreement for pooled tokens ``[m, d]``: ``[m, d + w]``."""
        normed = nn.functional.rms_norm(pooled, pooled.shape[-1:], eps=self.config.norm_eps)
        return normed if self.memory is None else torch.cat([normed, self.memory.code(pooled)], -1)
