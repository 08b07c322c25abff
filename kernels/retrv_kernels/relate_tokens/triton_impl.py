"""Three kernels. None of them stores ATT₂'s weights; they are computed again where needed.

`score_rows` writes, for every candidate row, its score under each pooling head, its RMS factor and
the log-sum-exp of each ATT₂ head. From these `weigh_queries` computes any block of weights by
itself and sums it over the rows. `combine` multiplies the sums by the folded values.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from retrv_kernels.ragged import widen
from retrv_kernels.relate_tokens.triton_kernels import combine, score_rows, weigh_queries
from retrv_kernels.triton_common import dot_precision, dot_type, on_tensor_device, padded

# Programs for a pair, which take its blocks of rows in turn: 256 rows have 8 blocks of 32. The
# number does not depend on the batch, and no length has to be read on the host.
PROGRAMS = 8


@on_tensor_device
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
    """Triton implementation of `retrv_kernels.ops.relate_tokens`."""
    keys, query_keys, values, cu_seqlens, cu_queries, candidate, query = (
        tensor.contiguous()
        for tensor in (
            relation_keys,
            query_keys,
            folded_values,
            cu_seqlens,
            cu_queries,
            candidate,
            query,
        )
    )
    scales = None if scales is None else scales.contiguous()
    (asked, heads, width), pool, pairs = values.shape, len(folded_queries), len(candidate)
    out = values.new_empty((pairs, pool, width), dtype=torch.float32)
    if asked == 0 or pairs == 0:
        return out.zero_()
    places, rows, longest = _extents(keys, cu_seqlens, cu_queries, candidate, asked)
    dot = dot_type(keys, query_keys)
    tile, block, warps = _configuration(dot, longest)
    blocks = triton.cdiv(longest, block)
    span = blocks * block  # whole blocks need no mask, with which loads would shrink to 4 bytes
    relevance = widen(values) @ widen(folded_queries).T
    products = None if eps is None else _products(values, cu_queries, span)
    scores, factors = out.new_empty((rows, pool)), out.new_empty(rows)
    lse, weights = out.new_empty((rows, heads)), out.new_empty((pairs, pool, heads, span))
    head_width = keys.shape[1] // heads
    where = (cu_seqlens, cu_queries, candidate, query, places)
    common = {
        "ROWS": tile,
        "BLOCK": block,
        "POOL": padded(pool, 16),
        "STEP": min(padded(head_width, 16), 32),
        "DOT": dot,
        "PRECISION": dot_precision(dot),
        "num_warps": warps,
        "num_stages": 2,
    }
    score_rows[(pairs, PROGRAMS)](
        keys,
        scales,
        query_keys,
        *where,
        relevance,
        products,
        scores,
        factors,
        lse,
        heads,
        pool,
        head_width,
        span,
        1.0 / width,
        0.0 if eps is None else eps,
        PROGRAMS=PROGRAMS,
        HEADS=padded(heads),
        **common,
    )
    weigh_queries[(pairs, heads * blocks)](
        keys,
        scales,
        query_keys,
        *where,
        scores,
        factors,
        lse,
        weights,
        heads,
        pool,
        head_width,
        span,
        **common,
    )
    columns = min(padded(width, 16), 64)
    combine[(pairs, triton.cdiv(width, columns))](
        weights,
        values,
        cu_queries,
        query,
        out,
        heads,
        pool,
        span,
        width,
        POOL=padded(pool, 16),
        BLOCK=min(block, 32),
        COLUMNS=columns,
        PRECISION=dot_precision(dot_type(values)),
    )
    return out


def _extents(
    keys: Tensor, cu_seqlens: Tensor, cu_queries: Tensor, candidate: Tensor, asked: int
) -> tuple[Tensor, int, int]:
    """Offset of each pair's rows, their total number, and the rows of the longest query.

    With one query the shapes give all of it: a candidate's rows have the offset of its keys. With
    several queries this waits for the device once, because bounds from the shapes alone would
    multiply the temporary memory by the number of queries.
    """
    if len(cu_queries) == 2:
        return cu_seqlens[candidate.long()], len(keys), asked
    ends = cu_seqlens.long().diff()[candidate.long()].cumsum(0)
    places = torch.cat([ends.new_zeros(1), ends[:-1]])
    rows, longest = torch.stack([ends[-1], cu_queries.diff().max().long()]).tolist()
    return places, rows, longest


def _products(values: Tensor, cu_queries: Tensor, span: int) -> Tensor:
    """``G = V Vᵀ`` of each query, ``[g, E · span, E · span]`` float32, 0 after its last row."""
    places = cu_queries[:-1, None] + torch.arange(span, device=values.device)
    rows = values[places.clamp(max=len(values) - 1)]
    rows = rows.where((places < cu_queries[1:, None])[..., None, None], 0)
    return _squared(rows.transpose(1, 2).flatten(1, 2))


def _squared(rows: Tensor) -> Tensor:
    """``rows rowsᵀ`` in float32, also for half-precision rows, whose range it can exceed.

    Products of half-precision numbers are exact in float32; tensor cores compute them so on a GPU.
    Products of float32 are PyTorch's: `torch.backends.cuda.matmul` can allow TF32 (not by default).
    """
    if rows.is_cuda and rows.element_size() == 2:
        return torch.bmm(rows, rows.mT, out_dtype=torch.float32)
    return widen(rows) @ widen(rows).mT


def _configuration(dot: tl.dtype, longest: int) -> tuple[int, int, int]:
    """Candidate rows in a block, query rows in a block, and warps.

    A block of query rows is no longer than the longest query needs: 16 for a text query of 8 rows.
    float32 products run on the ordinary cores from registers: half as many rows and twice the
    warps compile without spills. With 32 candidate rows, 50 candidates of 256 make 400 programs.
    """
    single = dot == tl.float32
    return 32, min(padded(longest, 16), 32 if single else 64), 8 if single else 4
