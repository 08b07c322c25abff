"""The equation, for several queries at once. The tests compare with its result in float64."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from retrv_kernels.pool_tokens.reference import pool_rows
from retrv_kernels.ragged import dequantize, pad_rows, take_items, widen
from retrv_kernels.relate_tokens.direct import relate_directly
from retrv_kernels.relate_tokens.forms import Arguments, folded_values, in_either_form, on_cpu

GATHERED = 2**23
"""Most numbers of candidates' keys that are copied for the queries computed at once: 32 MB."""


def relate_tokens(
    relation_keys: Tensor,
    cu_seqlens: Tensor,
    query_keys: Tensor,
    cu_queries: Tensor,
    query_values: Tensor,
    output: Tensor,
    folded_queries: Tensor,
    candidate: Tensor,
    query: Tensor,
    scales: Tensor | None,
    eps: float | None,
) -> Tensor:
    """Reference for `retrv_kernels.ops.relate_tokens`."""
    given = Arguments(
        *(relation_keys, cu_seqlens, query_keys, cu_queries, query_values, output),
        *(folded_queries, candidate, query, scales, eps),
    )
    return in_either_form(relate_folded, relate_directly, given)


def relate_folded(given: Arguments) -> Tensor:
    """Tokens of all pairs in the folded form."""
    places, bounds, query, candidate = on_cpu(
        given.cu_seqlens, given.cu_queries, given.query, given.candidate
    )
    keys, query_keys = dequantize(given.relation_keys, given.scales), widen(given.query_keys)
    values = widen(folded_values(given.query_values, given.output))
    queries, counts = widen(given.folded_queries), query.bincount(minlength=len(bounds) - 1)
    by_query, first = query.argsort(stable=True), counts.cumsum(0) - counts
    parts, order = [values.new_zeros(0, *queries.shape)], [query.new_zeros(0)]
    largest = int(places.diff().max()) * keys.shape[1] if len(places) > 1 else 0
    for numbers in _alike(counts, GATHERED // max(1, largest)):
        own = torch.arange(int(counts[numbers].max()))
        there = own < counts[numbers, None]
        # Where a query has fewer pairs than others, another pair is computed and dropped.
        pairs = by_query[(first[numbers, None] + own).clamp(max=len(query) - 1)]
        rows, mask = pad_rows(*take_items(keys, places, candidate[pairs.flatten()]))
        asks, asked = pad_rows(*take_items(query_keys, bounds, numbers))
        says, _ = pad_rows(*take_items(values, bounds, numbers))
        tokens = _of_queries(rows, mask, asks, asked, says, queries, given.eps)
        kept = there.flatten().nonzero().squeeze(1)
        parts.append(tokens[kept.to(tokens.device)])
        order.append(pairs.flatten()[kept])
    return torch.cat(parts)[torch.cat(order).argsort().to(values.device)]


def _alike(counts: Tensor, most: int) -> Iterator[Tensor]:
    """Numbers of the queries with pairs, in groups in which none has twice the pairs of another.

    Args:
        most: pairs of a group, if it has more than one query.
    """
    numbers = counts.argsort(stable=True)[int((counts == 0).sum()) :]
    doublings = counts[numbers].log2().floor().long()
    _, sizes = doublings.unique_consecutive(return_counts=True)
    for group in numbers.split(sizes.tolist()):
        yield from group.split(max(1, most // int(counts[group].max())))


def _of_queries(
    rows: Tensor,
    mask: Tensor,
    keys: Tensor,
    asked: Tensor,
    values: Tensor,
    queries: Tensor,
    eps: float | None,
) -> Tensor:
    """Tokens ``[g·p, H, d]`` of g queries with p candidates each.

    Args:
        rows, mask: candidates' rows ``[g·p, n, w]``, and which of them are real, ``[g·p, n]``.
        keys, values, asked: queries' rows ``[g, q, w]`` and ``[g, q, E, d]``, and which are real.
    """
    pairs, longest, _ = rows.shape
    heads = values.shape[2]
    rows = rows.view(len(keys), -1, rows.shape[-1])
    scores = torch.einsum(
        "grew,gqew->greq", rows.unflatten(-1, (heads, -1)), keys.unflatten(-1, (heads, -1))
    )
    known = asked[:, None, None]
    # A finite number, because all of a query's rows may be missing.
    scores = scores.masked_fill(~known, torch.finfo(scores.dtype).min)
    weights = (scores.softmax(-1) * known).flatten(2)
    values = values.transpose(1, 2).flatten(1, 2)
    if eps is not None:
        squares = ((weights @ (values @ values.mT)) * weights).sum(-1, keepdim=True)
        # If values cancel, rounding may leave a sum of squares slightly below 0.
        weights = weights * (squares.clamp(min=0) / values.shape[-1] + eps).rsqrt()
    scores = (weights @ (values @ queries.T)).view(pairs, longest, -1)
    pooled = pool_rows(scores, weights.view(pairs, longest, -1), mask)
    return (pooled.view(len(keys), -1, pooled.shape[-1]) @ values).view(pairs, -1, values.shape[-1])
