"""Three kernels. None of them stores ATT₂'s weights; they are computed again where needed.

`score_rows` writes, for every candidate row, its score under each pooling head, its RMS factor and
the log-sum-exp of each ATT₂ head. From these `weigh_queries` computes any block of weights by
itself and sums it over the rows. `combine` multiplies the sums by the folded values.

In the direct form `triton_direct` finds the factors, from tiles of R, and PyTorch's products
replace `combine`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from retrv_kernels.ragged import widen
from retrv_kernels.relate_tokens.forms import Arguments, folded_values, in_either_form
from retrv_kernels.relate_tokens.triton_direct import attend, product
from retrv_kernels.relate_tokens.triton_kernels import combine, score_rows, weigh_queries
from retrv_kernels.triton_common import dot_precision, dot_type, on_tensor_device, padded

# Programs for a pair, which take its blocks of rows in turn: 256 rows have 8 blocks of 32. The
# number does not depend on the batch, and no length has to be read on the host.
PROGRAMS = 8


@on_tensor_device
def relate_tokens(*arguments: Any) -> Tensor:
    """Triton implementation of `retrv_kernels.ops.relate_tokens`."""
    given = [one.contiguous() if isinstance(one, Tensor) else one for one in arguments]
    return in_either_form(relate_folded, relate_directly, Arguments._make(given))


def relate_folded(given: Arguments) -> Tensor:
    """Tokens of all pairs in the folded form."""
    if 0 in (len(given.query_keys), len(given.candidate)):
        return _empty_tokens(given).zero_()
    values = folded_values(given.query_values, given.output).contiguous()
    call = _Call.of(given)
    products = None
    if given.eps is not None:
        products = _products(values, given.cu_queries, call.span)
    call.score(widen(values) @ widen(given.folded_queries).T, products)
    return _combined(call, values)


def relate_directly(given: Arguments) -> Tensor:
    """Tokens of all pairs of the only query, from tiles of R."""
    if 0 in (len(given.query_keys), len(given.candidate)):
        return _empty_tokens(given).zero_()
    values, output, call = widen(given.query_values), widen(given.output), _Call.of(given)
    projected = torch.einsum("hd,dev->hev", widen(given.folded_queries), output)
    call.score(torch.einsum("qev,hev->qeh", values, projected).contiguous(), None)
    if given.eps is not None:
        for first, rows in attend(given, call.lse, call.common):
            factors = (rows.square().mean(-1) + given.eps).rsqrt()
            call.factors[first : first + len(rows)] = factors
            call.scores[first : first + len(rows)] *= factors[:, None]
    weights = call.weigh()[..., : len(values)]
    pooled = torch.einsum("phej,jev->phev", weights, values)
    return pooled.flatten(2) @ output.flatten(1).T


def _empty_tokens(given: Arguments) -> Tensor:
    shape = len(given.candidate), *given.folded_queries.shape
    return given.query_values.new_empty(shape, dtype=torch.float32)


@dataclass(frozen=True)
class _Call:
    """Launches of the kernels that both forms need, and what `score_rows` writes.

    Args:
        span: length of the longest query, rounded up to whole blocks.
        where: offsets and pairs, as the kernels take them.
        common: compile-time options of both kernels.
    """

    given: Arguments
    span: int
    where: tuple[Tensor, ...]
    scores: Tensor
    factors: Tensor
    lse: Tensor
    common: dict[str, Any]

    @classmethod
    def of(cls, given: Arguments) -> _Call:
        keys, heads, pool = given.relation_keys, given.query_values.shape[1], given.folded_queries
        places, rows, longest = _extents(given)
        dot = dot_type(keys, given.query_keys)
        tile, block, warps = _configuration(dot, longest)
        common = {
            "ROWS": tile,
            "BLOCK": block,
            "STEP": min(padded(keys.shape[1] // heads, 16), 32),
            "DOT": dot,
            "PRECISION": dot_precision(dot),
            "num_warps": warps,
            "num_stages": 2,
        }
        # Whole blocks need no mask, with which loads would shrink to 4 bytes.
        span = triton.cdiv(longest, block) * block
        where = given.cu_seqlens, given.cu_queries, given.candidate, given.query, places
        empty = functools.partial(keys.new_empty, dtype=torch.float32)
        scores, factors, lse = empty((rows, len(pool))), empty(rows), empty((rows, heads))
        return cls(given, span, where, scores, factors, lse, common)

    def score(self, relevance: Tensor, products: Tensor | None) -> None:
        """Writes scores, factors and log-sum-exps; factors are 1 without ``products``."""
        given, (_, heads, pool) = self.given, relevance.shape
        score_rows[(len(given.candidate), PROGRAMS)](
            given.relation_keys,
            given.scales,
            given.query_keys,
            *self.where,
            relevance,
            products,
            self.scores,
            self.factors,
            self.lse,
            heads,
            pool,
            given.relation_keys.shape[1] // heads,
            self.span,
            1.0 / len(given.output),
            0.0 if given.eps is None else given.eps,
            PROGRAMS=PROGRAMS,
            HEADS=padded(heads),
            POOL=padded(pool, 16),
            **self.common,
        )

    def weigh(self) -> Tensor:
        """How much of each value the pairs' tokens take, ``[c, H, E, span]``."""
        given, heads, pool = self.given, self.lse.shape[1], self.scores.shape[1]
        weights = self.lse.new_empty((len(given.candidate), pool, heads, self.span))
        weigh_queries[(len(weights), heads * self.span // self.common["BLOCK"])](
            given.relation_keys,
            given.scales,
            given.query_keys,
            *self.where,
            self.scores,
            self.factors,
            self.lse,
            weights,
            heads,
            pool,
            given.relation_keys.shape[1] // heads,
            self.span,
            POOL=padded(pool, 16),
            **self.common,
        )
        return weights


def _combined(call: _Call, values: Tensor) -> Tensor:
    """Tokens from weights and the folded ``values [q, E, d]``."""
    weights, out = call.weigh(), _empty_tokens(call.given)
    heads, width = values.shape[1:]
    columns = min(padded(width, 16), 64)
    combine[(len(out), triton.cdiv(width, columns))](
        weights,
        values,
        call.given.cu_queries,
        call.given.query,
        out,
        heads,
        out.shape[1],
        call.span,
        width,
        POOL=padded(out.shape[1], 16),
        BLOCK=min(call.common["BLOCK"], 32),
        COLUMNS=columns,
        PRECISION=dot_precision(dot_type(values)),
    )
    return out


def _extents(given: Arguments) -> tuple[Tensor, int, int]:
    """Offset of each pair's rows, their total number, and the rows of the longest query.

    With one query the shapes give all of it: a candidate's rows have the offset of its keys. With
    several queries this waits for the device, after `forms.py` has waited to choose their forms:
    bounds from the shapes alone would multiply the temporary memory by the number of queries.
    """
    candidate, cu_queries = given.candidate.long(), given.cu_queries
    if len(cu_queries) == 2:
        return given.cu_seqlens[candidate], len(given.relation_keys), len(given.query_keys)
    ends = given.cu_seqlens.long().diff()[candidate].cumsum(0)
    places = torch.cat([ends.new_zeros(1), ends[:-1]])
    rows, longest = torch.stack([ends[-1], cu_queries.diff().max().long()]).tolist()
    return places, rows, longest


def _products(values: Tensor, cu_queries: Tensor, span: int) -> Tensor:
    """``G = V Vᵀ`` of each query, ``[g, E · span, E · span]`` float32, 0 after its last row."""
    places = cu_queries[:-1, None] + torch.arange(span, device=values.device)
    rows = values[places.clamp(max=len(values) - 1)]
    rows = rows.where((places < cu_queries[1:, None])[..., None, None], 0)
    rows = rows.transpose(1, 2).flatten(1, 2)
    return product(rows, rows.mT)


def _configuration(dot: tl.dtype, longest: int) -> tuple[int, int, int]:
    """Candidate rows in a block, query rows in a block, and warps.

    A block of query rows is no longer than the longest query needs: 16 for a text query of 8 rows.
    float32 products run on the ordinary cores from registers: half as many rows and twice the
    warps compile without spills. With 32 candidate rows, 50 candidates of 256 make 400 programs.
    """
    single = dot == tl.float32
    return 32, min(padded(longest, 16), 32 if single else 64), 8 if single else 4
