"""One read of the relation keys; pairs spread over torch's threads.

The kernel gives, for each pair, how much of every value its token takes; a matrix product per
query turns them into tokens. The norm's quadratic form costs rows · (E·q)² operations, half of
that by its symmetry.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from retrv_kernels import native

PANEL = 32  # relate_tokens/native.h


@dataclass(frozen=True)
class _Query:
    """One query as the kernel wants it; columns are head by head, rows padded to panels."""

    keys: Tensor
    scores: Tensor
    gram: Tensor | None
    values: Tensor
    padded: int

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, queries: Tensor, eps: float | None) -> _Query:
        """From ``keys [q, w]``, ``values [q, E, d]`` and the pooling ``queries [H, d]``."""
        rows, heads, width = values.shape
        spare = -rows % PANEL
        padded = rows + spare
        keys = nn.functional.pad(keys.unflatten(1, (heads, -1)).permute(1, 2, 0), (0, spare))
        flat = values.flatten(0, 1)
        scores = (queries @ flat.T).unflatten(1, (rows, heads)).transpose(1, 2)
        scores = nn.functional.pad(scores, (0, spare)).flatten(1)
        gram = None
        if eps is not None:
            gram = (flat @ flat.T).view(rows, heads, rows, heads).permute(1, 0, 3, 2)
            gram = nn.functional.pad(gram, (0, spare, 0, 0, 0, spare)) / width
            gram = gram.reshape(heads * padded, heads * padded)
            gram = gram.triu(1).mul_(2).add_(gram.diagonal().diag())
            gram = gram.unflatten(1, (-1, PANEL)).transpose(0, 1).contiguous()
        return cls(keys.contiguous(), scores.contiguous(), gram, flat, padded)

    def row(self, rows: int) -> list[int]:
        """As RelateQuery of native.h."""
        addresses = map(native.address, (self.keys, self.scores, self.gram))
        return [rows, self.padded, *addresses]


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
    out = torch.zeros(len(candidate), pool_heads, width)
    offsets, bounds = cu_seqlens.tolist(), cu_queries.tolist()
    asked: dict[int, _Query] = {}
    for number in query.unique().tolist():
        own = slice(bounds[number], bounds[number + 1])
        if own.stop > own.start:
            values = folded_values[own].float()
            asked[number] = _Query.of(query_keys[own].float(), values, queries, eps)
    places = {number: place for place, number in enumerate(asked)}
    pairs, sizes, total = [], {}, 0
    # By query, so that the weights of one query's pairs lie together, as one matrix.
    order = [i for i in query.argsort(stable=True).tolist() if int(query[i]) in asked]
    for i in order:
        first, end = offsets[candidate[i]], offsets[candidate[i] + 1]
        number = int(query[i])
        pairs.append([first, end - first, places[number], total])
        sizes[number] = sizes.get(number, 0) + 1
        total += pool_heads * relate_heads * asked[number].padded
    if not pairs:
        return out
    weights = torch.empty(total)
    table = torch.tensor([q.row(bounds[n + 1] - bounds[n]) for n, q in asked.items()])
    pair_table = torch.tensor(pairs)
    native.function("relate_tokens")(
        keys.data_ptr(),
        native.DTYPES[keys.dtype],
        native.address(scales),
        keys.shape[1],
        relate_heads,
        pool_heads,
        table.data_ptr(),
        pair_table.data_ptr(),
        len(pairs),
        eps or 0.0,
        weights.data_ptr(),
        torch.get_num_threads(),
    )
    taken = placed = 0
    for number, own in asked.items():
        rows, count = bounds[number + 1] - bounds[number], sizes[number]
        block = weights[taken : taken + count * pool_heads * relate_heads * own.padded]
        block = block.view(count * pool_heads, relate_heads, own.padded)[..., :rows]
        tokens = block.transpose(1, 2).flatten(1) @ own.values
        out[torch.tensor(order[placed : placed + count])] = tokens.view(count, pool_heads, width)
        taken += count * pool_heads * relate_heads * own.padded
        placed += count
    return out
