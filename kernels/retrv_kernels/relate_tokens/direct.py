"""The direct form for one query, in plain PyTorch: tiles of R, normed and pooled one by one.

The reference uses it, and so does the native implementation: its products are large, and PyTorch's
reach the processor's product rate, where our own reach 61 to 77 % of it (docs/kernels.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retrv_kernels.ragged import dequantize, widen
from retrv_kernels.relate_tokens.forms import Arguments

# Most rows of a tile: enough for products at full speed. Pooling costs rows² · H for each column.
_ROWS = 256
# Most weights of a tile, 16 MB. Longer queries get fewer rows.
_WEIGHTS = 2**22


def relate_directly(given: Arguments) -> Tensor:
    """Tokens ``[c, H, d]`` of all pairs of the only query."""
    asked, heads, _ = given.query_values.shape
    keys = widen(given.query_keys).unflatten(1, (heads, -1)).permute(1, 2, 0)
    values = widen(given.query_values).transpose(0, 1).contiguous()
    projection, queries = widen(given.output).flatten(1).T, widen(given.folded_queries)
    lengths = given.cu_seqlens.diff()[given.candidate].long()
    owner = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    shift = given.cu_seqlens[given.candidate] - (lengths.cumsum(0) - lengths)
    places = torch.arange(len(owner), device=owner.device) + shift[owner]
    step = min(_ROWS, max(16, _WEIGHTS // max(heads * asked, 1)))
    pieces = [_no_piece(queries)]
    for first in range(0, len(owner), step):
        own, pairs = places[first : first + step], owner[first : first + step]
        scales = None if given.scales is None else given.scales[own]
        rows = dequantize(given.relation_keys[own], scales)
        scores = rows.unflatten(1, (heads, -1)).transpose(0, 1) @ keys
        related = (scores.softmax(-1) @ values).transpose(0, 1).flatten(1) @ projection
        if given.eps is not None:
            related = nn.functional.rms_norm(related, related.shape[-1:], eps=given.eps)
        pieces.append(_pool(related, pairs, queries))
    return _merge(pieces, len(lengths))


Piece = tuple[Tensor, Tensor, Tensor, Tensor]
"""Pairs ``[p]`` of which a tile has rows, and for each of their rows under each pooling head the
highest score ``[H, p]``, the sum of weights and the weighted sum of rows ``[H, p, d]``."""


def _no_piece(queries: Tensor) -> Piece:
    none = queries.new_empty(len(queries), 0)
    pairs = torch.empty(0, dtype=torch.long, device=queries.device)
    return pairs, none, none, queries.new_empty(len(queries), 0, queries.shape[1])


def _pool(rows: Tensor, pairs: Tensor, queries: Tensor) -> Piece:
    """A tile's part of the pooling of ``rows [n, d]`` that belong to ascending ``pairs [n]``."""
    there, place = pairs.unique_consecutive(return_inverse=True)
    own = place == torch.arange(len(there), device=place.device)[:, None]
    scores = (queries @ rows.T)[:, None].masked_fill(~own, float("-inf"))
    top = scores.detach().amax(-1, keepdim=True)
    weights = (scores - top).exp()
    return there, top.squeeze(-1), weights.sum(-1), weights @ rows


def _merge(pieces: list[Piece], count: int) -> Tensor:
    """Tokens ``[count, H, d]``; 0 for a pair without rows."""
    parts = zip(*pieces, strict=True)
    pairs, top, total, pooled = (torch.cat(part, min(i, 1)) for i, part in enumerate(parts))
    highest = top.new_full((len(top), count), float("-inf"))
    highest = highest.scatter_reduce(1, pairs.expand_as(top), top, "amax")
    share = (top - highest[:, pairs]).exp()
    total = total.new_zeros(len(top), count).index_add(1, pairs, share * total)
    pooled = pooled.new_zeros(len(top), count, pooled.shape[2]).index_add(
        1, pairs, share[..., None] * pooled
    )
    return (pooled / total.where(total > 0, 1)[..., None]).transpose(0, 1).contiguous()
