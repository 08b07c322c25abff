"""What several Triton kernels share: chunks of packed items and one step of online attention."""

# mypy: disallow-incomplete-defs=False
# In a kernel only compile-time arguments are annotated; Triton reads the annotation.

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

Result = TypeVar("Result")


def on_tensor_device(run: Callable[..., Result]) -> Callable[..., Result]:
    """Makes a function launch on its tensors' device, which need not be the current one."""

    @functools.wraps(run)
    def launch(*arguments: object) -> Result:
        tensor = next(one for one in arguments if isinstance(one, Tensor))
        with torch.cuda.device_of(tensor):
            return run(*arguments)

    return launch


def dot_type(*tensors: Tensor) -> tl.dtype:
    """Type of the operands of products: half precision if all tensors have it, else float32.

    int8 tensors do not count. On a CPU bfloat16 gives float32, because the interpreter holds
    bfloat16 as bit patterns.
    """
    dtypes = {tensor.dtype for tensor in tensors if tensor.dtype != torch.int8}
    if dtypes == {torch.float16}:
        return tl.float16
    if dtypes == {torch.bfloat16} and tensors[0].device.type != "cpu":
        return tl.bfloat16
    return tl.float32


def padded(size: int, minimum: int = 1) -> int:
    """The next power of two, at least ``minimum``; `tl.dot` needs 16."""
    return max(triton.next_power_of_2(size), minimum)


@triton.jit
def chunk_of(offsets, items, number, SIZE: tl.constexpr):
    """Item, first row and one after the last row of chunk ``number`` of packed items.

    Item i's chunks begin at number ``offsets[i] // SIZE + i``, which leaves at least as many
    numbers as it has chunks. So ``n // SIZE + m`` programs serve m items of n rows without reading
    a length on the host, and an item's chunks depend on that item only. A number that is not
    needed gives no rows.
    """
    item = 0
    for first in range(0, items, 256):
        i = first + 1 + tl.arange(0, 256)
        begins = tl.load(offsets + i, mask=i <= items, other=0) // SIZE + i
        item += tl.sum(((i <= items) & (begins <= number)).to(tl.int32))
    begin = tl.load(offsets + item).to(tl.int64)
    end = tl.load(offsets + item + 1).to(tl.int64)
    start = begin + (number - begin // SIZE - item) * SIZE
    return item, start, tl.minimum(start + SIZE, end)


def dot_precision(dtype: tl.dtype) -> str:
    """Precision of products with float32 operands: exact if all inputs are float32, else TF32.

    With operands truncated to TF32's 10 bits in the interpreter, the worst that hardware does,
    relate_tokens has an error of 1.2e-3 on float16 rows; exact products have 2e-6.
    """
    return "ieee" if dtype == tl.float32 else "tf32"


MAX_PARTS = 64


def split_count(programs: int, max_blocks: int) -> int:
    """Number of programs that share cached rows, for two on each of an H100's multiprocessors.

    It depends on shapes only, so that a graph can capture the launch; some programs may find
    nothing to read.

    Args:
        programs: number of programs without splitting.
        max_blocks: largest possible number of blocks of cached rows.
    """
    return max(1, min(264 // max(programs, 1), max_blocks, MAX_PARTS))


def empty_parts(query: Tensor, count: int) -> tuple[Tensor, Tensor | None]:
    """Memory for ``count`` partial results and their log-sum-exps; for one, the result alone."""
    if count == 1:
        return torch.empty_like(query, memory_format=torch.contiguous_format), None
    parts = query.new_empty((count, *query.shape), dtype=torch.float32)
    return parts, parts.new_empty(parts.shape[:-1])


def merge(parts: Tensor, lse: Tensor | None, dtype: torch.dtype) -> Tensor:
    """One result from the partial results in the memory of `empty_parts`."""
    if lse is None:
        return parts
    count, rows, heads, width = parts.shape
    out = parts.new_empty((rows, heads, width), dtype=dtype)
    _merge_parts[(rows * heads,)](
        parts, lse, out, rows * heads, count, width, MAX=MAX_PARTS, WIDTH=padded(width)
    )
    return out


@triton.jit
def attend(
    query,
    top,
    total,
    pooled,
    key_pages,
    value_pages,
    table,
    first,
    stop,
    limits,
    page_stride,
    row_stride,
    width,
    scale,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One step of the online softmax over cached rows ``first`` to ``first + BLOCK``.

    Args:
        query: query rows ``[M, WIDTH]`` in the type of the dots.
        top, total, pooled: state of the softmax: highest score as a power of two, sum of weights,
            weighted sum of values.
        key_pages, value_pages: pointers to the head's first element.
        table: pointer to the list of pages.
        stop: one after the last cached row.
        limits: number of cached rows that each query row sees, ``[M]``.
        scale: factor of the scores, times log2(e).
    """
    j, c = first + tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    page = tl.load(table + j // PAGE, j < stop, other=0).to(tl.int64)
    place = (page * page_stride + (j % PAGE) * row_stride)[:, None] + c[None, :]
    # Unused slots are not read: they may hold NaN, and 0 · NaN is NaN.
    there = (j < stop)[:, None] & (c < width)[None, :]
    keys = tl.load(key_pages + place, there, other=0).to(query.dtype)
    scores = tl.dot(query, tl.trans(keys), input_precision=PRECISION) * scale
    scores = tl.where(j[None, :] < limits[:, None], scores, float("-inf"))
    highest = tl.maximum(top, tl.max(scores, 1))
    base = tl.where(highest == float("-inf"), 0, highest)
    kept = tl.exp2(top - base)
    weights = tl.exp2(scores - base[:, None])
    total = total * kept + tl.sum(weights, 1)
    values = tl.load(value_pages + place, there, other=0).to(query.dtype)
    pooled = tl.dot(
        weights.to(query.dtype), values, pooled * kept[:, None], input_precision=PRECISION
    )
    return highest, total, pooled


@triton.jit
def store_part(parts, lse, top, total, pooled, place, width, own, WIDTH: tl.constexpr):
    """Writes a tile's rows to ``place`` in the parts, where ``own``, and their log-sum-exps."""
    c = tl.arange(0, WIDTH)
    some = tl.where(total > 0, total, 1)
    result = pooled / some[:, None]
    where = place.to(tl.int64)[:, None] * width + c[None, :]
    tl.store(parts + where, result.to(parts.dtype.element_ty), own[:, None] & (c < width)[None, :])
    if lse is not None:
        tl.store(lse + place, tl.where(total > 0, top + tl.log2(some), float("-inf")), own)


@triton.jit
def store_empty(lse, place, own):
    """Marks a part's rows as empty: `_merge_parts` does not read them."""
    if lse is not None:
        tl.store(lse + place, tl.full(place.shape, float("-inf"), tl.float32), own)


@triton.jit(do_not_specialize=["rows", "count"])
def _merge_parts(parts, lse, out, rows, count, width, MAX: tl.constexpr, WIDTH: tl.constexpr):
    row, c = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    every = tl.arange(0, MAX)
    top = tl.max(tl.load(lse + every * rows + row, every < count, other=float("-inf")))
    total = 0.0
    result = tl.zeros([WIDTH], tl.float32)
    for first in range(0, count, 8):
        s = first + tl.arange(0, 8)
        own_lse = tl.load(lse + s * rows + row, s < count, other=float("-inf"))
        weights = tl.exp2(own_lse - tl.where(top == float("-inf"), 0, top))
        own = (own_lse > float("-inf"))[:, None] & (c < width)[None, :]
        part = tl.load(parts + (s[:, None] * rows + row) * width + c[None, :], own, other=0)
        total += tl.sum(weights)
        result += tl.sum(part * weights[:, None], 0)
    result /= tl.where(total > 0, total, 1)
    tl.store(out + row * width + c, result.to(out.dtype.element_ty), c < width)
