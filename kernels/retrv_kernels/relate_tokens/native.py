"""The folded form in one read of the relation keys; torch's threads share the pairs.

The kernel computes the weight of every value in each pair's token; a matrix product for each query
turns weights into tokens. The norm's quadratic form is symmetric, so it takes (E·q)²
floating-point operations for each candidate row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retrv_kernels import native
from retrv_kernels.relate_tokens.direct import relate_directly
from retrv_kernels.relate_tokens.forms import Arguments, folded_values, in_either_form


@dataclass(frozen=True)
class _Query:
    """RelateQuery of native.h: one column for each value, ordered by head and padded with zeros.

    The columns of a head are padded to whole vectors, because partial vectors take AVX-512 twice
    the time, and all columns to whole panels. ``values`` are not reordered: they are megabytes,
    the weights are not.
    """

    rows: int
    keys: Tensor
    scores: Tensor
    gram: Tensor | None
    values: Tensor

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, queries: Tensor, eps: float | None) -> _Query:
        """A query with ``keys [q, w]``, ``values [q, E, d]`` and the pooling ``queries [H, d]``."""
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
        """The members of RelateQuery in native.h."""
        addresses = map(native.address, (self.keys, self.scores, self.gram))
        return [self.rows, self.keys.shape[2], self.scores.shape[1], *addresses]

    def tokens(self, weights: Tensor) -> Tensor:
        """Tokens ``[c · H, d]`` of this query's pairs, from weights ``[c · H, columns]``."""
        heads, padded = len(self.keys), self.keys.shape[2]
        used = weights[:, : heads * padded].unflatten(1, (heads, padded))[..., : self.rows]
        return used.transpose(1, 2).flatten(1) @ self.values


def relate_tokens(*arguments: Any) -> Tensor:
    """Native implementation of `retrv_kernels.ops.relate_tokens`."""
    return in_either_form(relate_folded, relate_directly, Arguments(*arguments))


def relate_folded(given: Arguments) -> Tensor:
    """Tokens of all pairs in the folded form."""
    keys, queries = given.relation_keys.contiguous(), given.folded_queries.float().contiguous()
    scales = None if given.scales is None else given.scales.contiguous()
    candidate, query, cu_queries = given.candidate, given.query, given.cu_queries
    (pool_heads, width), relate_heads = queries.shape, given.query_values.shape[1]
    out = queries.new_zeros(len(candidate), pool_heads, width)
    # Pairs are sorted by query, so that the weights of a query's pairs form one matrix. Pairs whose
    # query has no rows stay 0.
    order = query.argsort(stable=True)
    order = order[cu_queries.diff()[query[order]] > 0]
    if len(order) == 0:
        return out
    values = folded_values(given.query_values, given.output)
    numbers, place, counts = query[order].unique(return_inverse=True, return_counts=True)
    bounds, asked = cu_queries.tolist(), []
    for number in numbers.tolist():
        own = slice(bounds[number], bounds[number + 1])
        asked.append(
            _Query.of(given.query_keys[own].float(), values[own].float(), queries, given.eps)
        )
    sizes = counts.new_tensor([own.scores.numel() for own in asked])
    begins = sizes[place].cumsum(0) - sizes[place]
    mine = candidate[order]
    pairs = torch.stack(
        [given.cu_seqlens[mine], given.cu_seqlens.diff()[mine], place, begins], 1
    ).long()
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
        given.eps or 0.0,
        weights.data_ptr(),
        torch.get_num_threads(),
    )
    parts = zip(weights.split((sizes * counts).tolist()), counts.tolist(), asked, strict=True)
    tokens = [own.tokens(part.view(count * pool_heads, -1)) for part, count, own in parts]
    if len(asked) == 1 and len(order) == len(candidate):  # already in order: saves a copy of 2 MB
        return tokens[0].unflatten(0, (-1, pool_heads))
    out[order] = torch.cat(tokens).unflatten(0, (-1, pool_heads))
    return out
