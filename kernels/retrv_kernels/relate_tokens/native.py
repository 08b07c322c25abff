"""One read of the relation keys; pairs spread over torch's threads.

The kernel gives, for each pair, how much of every value its token takes; a matrix product per
query turns them into tokens. The norm's quadratic form costs (E·q)² floating-point operations a
candidate row, by its symmetry.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from retrv_kernels import native


@dataclass(frozen=True)
class _Query:
    """One query as the kernel wants it: value columns head by head, filled up with zeros.

    Each head's to whole vectors, since vectors in part cost AVX-512 twice the time, and all to
    whole panels. ``values`` stay row by row: they are megabytes, the weights are not.
    """

    rows: int
    keys: Tensor
    scores: Tensor
    gram: Tensor | None
    values: Tensor

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, queries: Tensor, eps: float | None) -> _Query:
        """From ``keys [q, w]``, ``values [q, E, d]`` and the pooling ``queries [H, d]``."""
        rows, heads, width = values.shape
        pad, spare = nn.functional.pad, (0, -rows % native.lanes())
        panel = native.constant("PANEL")
        filled = (0, -heads * (rows + spare[1]) % panel)
        keys = pad(keys.unflatten(1, (heads, -1)).permute(1, 2, 0), spare).contiguous()
        values = values.flatten(0, 1)
        scores = (queries @ values.T).unflatten(1, (rows, heads)).transpose(1, 2)
        scores = pad(pad(scores, spare).flatten(1), filled).contiguous()
        gram = None
        if eps is not None:
            gram = (values @ values.T).div_(width)
            gram = gram.view(rows, heads, rows, heads).permute(1, 0, 3, 2)
            gram = pad(gram, (*spare, 0, 0, *spare)).flatten(2).flatten(0, 1)
            gram = gram.triu(1).mul_(2).add_(gram.diagonal().diag())
            gram = pad(gram, (*filled, *filled))
            gram = gram.unflatten(1, (-1, panel)).transpose(0, 1).contiguous()
        return cls(rows, keys, scores, gram, values)

    def row(self) -> list[int]:
        """As RelateQuery of native.h."""
        addresses = map(native.address, (self.keys, self.scores, self.gram))
        return [self.rows, self.keys.shape[2], self.scores.shape[1], *addresses]

    def tokens(self, weights: Tensor) -> Tensor:
        """The kernel's weights of some pairs' heads, ``[c · H, columns]``, times the values."""
        heads, padded = len(self.keys), self.keys.shape[2]
        used = weights[:, : heads * padded].unflatten(1, (heads, padded))[..., : self.rows]
        return used.transpose(1, 2).flatten(1) @ self.values


def relate_tokens(
    relation_keys: Tensor,
    cu_seqlens: Tensor,
    query_keys: Tensor,
    cu_queries: Tensor,
    folded_values: Tensor,
    folded_queries: Tensor,
    candidate: Tensor,
    query: Tensor,
    scales: Tensor | None,
    eps: float | None,
) -> Tensor:
    keys, queries = relation_keys.contiguous(), folded_queries.float().contiguous()
    scales = None if scales is None else scales.contiguous()
    (pool_heads, width), relate_heads = queries.shape, folded_values.shape[1]
    out = queries.new_zeros(len(candidate), pool_heads, width)
    # By query, so that the weights of one query's pairs lie together, as one matrix; pairs whose
    # query has no rows stay 0.
    order = query.argsort(stable=True)
    order = order[cu_queries.diff()[query[order]] > 0]
    if len(order) == 0:
        return out
    numbers, place, counts = query[order].unique(return_inverse=True, return_counts=True)
    bounds, asked = cu_queries.tolist(), []
    for number in numbers.tolist():
        own = slice(bounds[number], bounds[number + 1])
        asked.append(_Query.of(query_keys[own].float(), folded_values[own].float(), queries, eps))
    sizes = counts.new_tensor([own.scores.numel() for own in asked])
    begins = sizes[place].cumsum(0) - sizes[place]
    mine = candidate[order]
    pairs = torch.stack([cu_seqlens[mine], cu_seqlens.diff()[mine], place, begins], 1).long()
    table = counts.new_tensor([own.row() for own in asked])
    weights = queries.new_empty(int((sizes * counts).sum()))
    native.function("relate_tokens")(
        keys.data_ptr(),
        native.DTYPES[keys.dtype],
        native.address(scales),
        keys.shape[1],
        relate_heads,
        pool_heads,
        table.data_ptr(),
        pairs.data_ptr(),
        len(pairs),
        eps or 0.0,
        weights.data_ptr(),
        torch.get_num_threads(),
    )
    parts = zip(weights.split((sizes * counts).tolist()), counts.tolist(), asked, strict=True)
    tokens = [own.tokens(part.view(count * pool_heads, -1)) for part, count, own in parts]
    if len(asked) == 1 and len(order) == len(candidate):  # in order: no copy of 2 MB
        return tokens[0].unflatten(0, (-1, pool_heads))
    out[order] = torch.cat(tokens).unflatten(0, (-1, pool_heads))
    return out
