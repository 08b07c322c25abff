"""The two forms of the computation, and which of them a query gets.

They differ in how they find the norm of R's rows. The folded form multiplies weights by the Gram
matrix of all values: (E·q)² operations for each candidate row, and as many numbers for each query.
The direct form makes tiles of R itself: q·d operations for its values and d² for its output
projection, and memory that grows with q alone. Without the norm nothing is quadratic in the folded
form; it still projects all values, which few candidate rows do not pay for.
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
# Most numbers in the Gram matrices of the queries that are folded together: 64 MB.
_GRAMS = 2**24


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


def is_folded(rows: int, tokens: int, values: Sequence[int], width: int, eps: float | None) -> bool:
    """Whether a query's tokens are computed in the folded form: by estimated time.

    Args:
        rows: number of candidate rows that meet the query.
        tokens: number of tokens to make: pairs times pooling heads.
        values: shape of the query's values, ``[q, E, v]``.
        width: width d of R.
    """
    asked, heads, depth = values
    weights = heads * asked
    folded = 2.0 * width * weights * (depth + tokens)
    if eps is not None:
        # A row needs half of the Gram matrix, which is symmetric; making it is a product of all.
        gram = weights**2
        folded += gram * (rows * (_FOLDED_COST + gram / _CACHED_GRAM) + 2 * width)
    return folded <= norm_operations(rows, values, width, False) + _DIRECT_CALL


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
    values, eps = given.query_values.shape, given.eps
    pool_heads, width = given.folded_queries.shape
    if len(given.cu_queries) == 2:
        rows, made = len(given.relation_keys), len(given.candidate) * pool_heads
        return (folded if is_folded(rows, made, values, width, eps) else direct)(given)
    places, bounds, query, candidate = on_cpu(
        given.cu_seqlens, given.cu_queries, given.query, given.candidate
    )
    lengths, pairs = places.diff()[candidate], query.bincount(minlength=len(bounds) - 1)
    met = pairs.new_zeros(len(pairs)).index_add(0, query, lengths)
    short: list[int] = []
    long: list[int] = []
    counts = zip(met.tolist(), pairs.tolist(), bounds.diff().tolist(), strict=True)
    for number, (rows, count, own) in enumerate(counts):
        one = is_folded(rows, count * pool_heads, (own, *values[1:]), width, eps)
        (short if one else long).append(number)
    groups = _by_memory(short, bounds.diff().tolist(), values[1], eps)
    if not long and len(groups) == 1:
        return folded(given)
    tokens, order = [], []
    for run, numbers in (*((direct, [number]) for number in long), *((folded, x) for x in groups)):
        group = torch.tensor(numbers, dtype=torch.long)
        mine = torch.isin(query, group).nonzero().squeeze(1)
        own = candidate[mine]
        part = _of_queries(given, bounds, own, query[mine], group)
        # Short queries share all keys; the direct form computes R of all keys that it is given.
        tokens.append(folded(part) if run is folded else direct(_with_own_keys(part, places, own)))
        order.append(mine)
    return torch.cat(tokens)[torch.cat(order).argsort().to(given.output.device)]


def _by_memory(
    numbers: Sequence[int], lengths: Sequence[int], heads: int, eps: float | None
) -> list[list[int]]:
    """Queries in ascending groups whose Gram matrices, padded to the longest, fit ``_GRAMS``.

    A longer query is a group of its own. There is one group at least, and one without the norm.
    """
    if eps is None:
        return [list(numbers)]
    groups: list[list[int]] = [[]]
    for number in sorted(numbers, key=lambda number: -lengths[number]):
        group = groups[-1]
        if group and (len(group) + 1) * (heads * lengths[group[0]]) ** 2 > _GRAMS:
            groups.append(group := [])
        group.append(number)
    return [sorted(group) for group in groups]


def _of_queries(
    given: Arguments, bounds: Tensor, candidate: Tensor, query: Tensor, group: Tensor
) -> Arguments:
    """Arguments with some pairs and the queries ``group``; index tensors are on the CPU."""
    asks, asked = take_items(given.query_keys, bounds, group)
    index = asked, candidate, torch.searchsorted(group, query)
    asked, candidate, query = (x.to(asks.device, non_blocking=True) for x in index)
    return given._replace(
        query_keys=asks,
        cu_queries=asked,
        query_values=take_items(given.query_values, bounds, group)[0],
        candidate=candidate,
        query=query,
    )


def _with_own_keys(given: Arguments, places: Tensor, candidate: Tensor) -> Arguments:
    """Arguments with the keys of the pairs' candidates only; ``candidate`` is on the CPU."""
    keys, offsets = take_items(given.relation_keys, places, candidate)
    scales = given.scales
    return given._replace(
        relation_keys=keys,
        cu_seqlens=offsets.to(keys.device, non_blocking=True),
        candidate=torch.arange(len(candidate), device=keys.device),
        scales=None if scales is None else take_items(scales, places, candidate)[0],
    )


def on_cpu(*indices: Tensor) -> tuple[Tensor, ...]:
    """Index tensors on the CPU, in one copy."""
    sizes = [len(index) for index in indices]
    return torch.cat([index.long() for index in indices]).cpu().split(sizes)
