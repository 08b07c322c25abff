"""The equation, one query at a time. The tests compare with its result in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from retrv_kernels.pool_tokens.reference import pool_rows
from retrv_kernels.ragged import dequantize, pad_rows, take_items, widen
from retrv_kernels.relate_tokens.direct import relate_directly
from retrv_kernels.relate_tokens.forms import Arguments, folded_values, in_either_form


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
    keys, query_keys = dequantize(given.relation_keys, given.scales), widen(given.query_keys)
    values = widen(folded_values(given.query_values, given.output))
    queries, candidate, query = widen(given.folded_queries), given.candidate, given.query
    bounds = given.cu_queries.tolist()
    parts, order = [values.new_zeros(0, *queries.shape)], [candidate.new_zeros(0).long()]
    for number in query.unique().tolist():
        pairs = (query == number).nonzero().squeeze(1)
        rows, mask = pad_rows(*take_items(keys, given.cu_seqlens, candidate[pairs]))
        own = slice(bounds[number], bounds[number + 1])
        parts.append(_one_query(rows, mask, query_keys[own], values[own], queries, given.eps))
        order.append(pairs)
    return torch.cat(parts)[torch.cat(order).argsort()]


def _one_query(
    rows: Tensor, mask: Tensor, keys: Tensor, values: Tensor, queries: Tensor, eps: float | None
) -> Tensor:
    """Tokens ``[c, H, d]`` of one query: candidates' ``rows [c, n, w]``, ``values [q, E, d]``."""
    heads = values.shape[1]
    rows, keys = rows.unflatten(-1, (heads, -1)), keys.unflatten(-1, (heads, -1))
    weights = torch.einsum("cnew,qew->cneq", rows, keys).softmax(-1).flatten(2)
    values = values.transpose(0, 1).flatten(0, 1)
    if eps is not None:
        squares = ((weights @ (values @ values.T)) * weights).sum(-1, keepdim=True)
        # If values cancel, rounding may leave a sum of squares slightly below 0.
        weights = weights * (squares.clamp(min=0) / values.shape[-1] + eps).rsqrt()
    return pool_rows(weights @ (values @ queries.T), weights, mask) @ values
