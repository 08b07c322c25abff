"""The two forms of the computation, and which of them a query gets.

They differ in how they find the norm of R's rows. The folded form multiplies weights by the Gram
matrix of all values: (E·q)² operations for each candidate row, and as many numbers for each query.
The direct form makes tiles of R itself: q·d operations for its values and d² for its output
projection, and memory that grows with q alone. Without the norm nothing is quadratic in the folded
form, and it is never slower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from retrv_kernels.ragged import take_items

# Fitted to the times of both native forms (docs/kernels.md): the folded kernel reaches 0.8 of the
# product rate that tiles of R reach, and less as the Gram matrix outgrows the caches.
_FOLDED_COST = 1.25
_CACHED_GRAM = 8e6
# Operations that take as long as the Python of a call in the direct form.
_DIRECT_CALL = 5e7


class Arguments(NamedTuple):
    """The operator's arguments, which `op.py` describes."""

    relation_keys: Tensor
    cu_seqlens: Tensor
    query_keys: Tensor
    cu_queries: Tensor
    query_values: Tensor
    output: Tensor
    folded_queries: Tensor
    candidate: Tensor
    query: Tensor
    scales: Tensor | None
    eps: float | None


Form = Callable[[Arguments], Tensor]


def is_folded(rows: int, values: Tensor, output: Tensor, eps: float | None) -> bool:
    """Whether a query's tokens are computed in the folded form: by estimated time.

    Args:
        rows: number of candidate rows that meet the query.
        values: the query's values, ``[q, E, v]``.
        output: output projection, ``[d, E, v]``.
    """
    if eps is None:
        return True
    (asked, heads, depth), width = values.shape, len(output)
    inner, gram = heads * depth, (heads * asked) ** 2
    # A row needs half of the Gram matrix, which is symmetric; making it is a product of all of it.
    folded = gram * (rows * (_FOLDED_COST + gram / _CACHED_GRAM) + 2 * width)
    folded += 2 * asked * inner * width
    return folded <= norm_operations(rows, values.shape, width, False) + _DIRECT_CALL


def norm_operations(rows: int, values: Sequence[int], width: int, folded: bool) -> int:
    """Operations by which a form finds the norms of ``rows`` rows of R, of this width.

    Args:
        values: shape of the query's values, ``[q, E, v]``.
    """
    asked, heads, depth = values
    if folded:
        return rows * heads * asked * (heads * asked + 1)
    return 2 * rows * heads * depth * (asked + width)


def folded_values(values: Tensor, output: Tensor) -> Tensor:
    """``Vⱼₑ``: query row j after value and output projection of head e, ``[q, E, d]``."""
    return torch.einsum("nev,dev->ned", values, output.to(values.dtype))


def in_either_form(folded: Form, direct: Form, given: Arguments) -> Tensor:
    """The tokens of all pairs, each query's in its own form.

    One query's form follows from shapes, so that nothing waits for a device. The lengths of several
    queries are read once.

    Args:
        direct: function that takes arguments with one query.
    """
    values, output, eps = given.query_values, given.output, given.eps
    if len(given.cu_queries) == 2:
        one = is_folded(len(given.relation_keys), values, output, eps)
        return (folded if one else direct)(given)
    places, bounds, query, candidate = _on_cpu(
        given.cu_seqlens, given.cu_queries, given.query, given.candidate
    )
    met = bounds.new_zeros(len(bounds) - 1).index_add(0, query, places.diff()[candidate])
    short: list[int] = []
    long: list[int] = []
    for number, (rows, own) in enumerate(zip(met.tolist(), bounds.diff().tolist(), strict=True)):
        (short if is_folded(rows, values[:own], output, eps) else long).append(number)
    if not long:
        return folded(given)
    tokens, order = [], []
    for run, numbers in (*((direct, [number]) for number in long), (folded, short)):
        group = torch.tensor(numbers, dtype=torch.long)
        pairs = torch.isin(query, group).nonzero().squeeze(1)
        tokens.append(run(_part(given, places, bounds, candidate[pairs], query[pairs], group)))
        order.append(pairs)
    return torch.cat(tokens)[torch.cat(order).argsort().to(output.device)]


def _part(
    given: Arguments,
    places: Tensor,
    bounds: Tensor,
    candidate: Tensor,
    query: Tensor,
    group: Tensor,
) -> Arguments:
    """Arguments with some pairs and the queries ``group``; index tensors are on the CPU."""
    keys, offsets = take_items(given.relation_keys, places, candidate)
    asks, asked = take_items(given.query_keys, bounds, group)
    index = offsets, asked, torch.arange(len(candidate)), torch.searchsorted(group, query)
    offsets, asked, candidates, queries = (x.to(keys.device, non_blocking=True) for x in index)
    return given._replace(
        relation_keys=keys,
        cu_seqlens=offsets,
        query_keys=asks,
        cu_queries=asked,
        query_values=take_items(given.query_values, bounds, group)[0],
        candidate=candidates,
        query=queries,
        scales=None if given.scales is None else take_items(given.scales, places, candidate)[0],
    )


def _on_cpu(*indices: Tensor) -> tuple[Tensor, ...]:
    """Index tensors on the CPU, in one copy."""
    sizes = [len(index) for index in indices]
    return torch.cat([index.long() for index in indices]).cpu().split(sizes)
