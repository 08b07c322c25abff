"""What several Triton kernels share: finding an item's chunk, and one step of online attention."""

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


def on_their_device(run: Callable[..., Result]) -> Callable[..., Result]:
    """Launches on the tensors' device, which need not be the current one."""

    @functools.wraps(run)
    def launch(*arguments: object) -> Result:
        tensor = next(one for one in arguments if isinstance(one, Tensor))
        with torch.cuda.device_of(tensor):
            return run(*arguments)

    return launch


def dot_type(*tensors: Tensor) -> tl.dtype:
    """Type in which products of these are taken: half on tensor cores if all are, else float32.

    The interpreter holds bfloat16 as bit patterns, so there it is float32 too.
    """
    dtypes = {tensor.dtype for tensor in tensors if tensor.dtype != torch.int8}
    if dtypes == {torch.float16}:
        return tl.float16
    if dtypes == {torch.bfloat16} and tensors[0].device.type != "cpu":
        return tl.bfloat16
    return tl.float32


def padded(size: int, least: int = 1) -> int:
    """The next power of two, and ``least`` or more: 16 is what a `tl.dot` asks for."""
    return max(triton.next_power_of_2(size), least)


@triton.jit
def chunk_of(offsets, items, number, SIZE: tl.constexpr):
    """Item, first row and the row behind the last of chunk ``number`` of packed items.

    Item i's chunks begin at number ``offsets[i] // SIZE + i``, which leaves it at least as many
    numbers as it has chunks. So ``n // SIZE + m`` programs serve m items of n rows without anybody
    reading a length on the host, and where an item's chunks begin depends on the item alone. A
    number that is not needed gives no rows.
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


def precision(dtype: tl.dtype) -> str:
    """Of products with float32 operands: exact where all inputs are float32, else TF32.

    With operands cut to TF32's 10 bits in the interpreter, which is the worst that hardware does,
    relate_tokens errs by 1.2e-3 on float16 rows; exact products err by 2e-6.
    """
    return "ieee" if dtype == tl.float32 else "tf32"


MOST_PARTS = 64


def splits(programs: int, most: int) -> int:
    """Among how many programs to split cached rows: two for each of an H100's multiprocessors.

    From shapes alone, so that a graph may capture the launch: some may find nothing to read.

    Args:
        programs: that there are without splitting.
        most: blocks of cached rows that there can be.
    """
    return max(1, min(264 // max(programs, 1), most, MOST_PARTS))


def parts_of(query: Tensor, count: int) -> tuple[Tensor, Tensor | None]:
    """Room for ``count`` partial results and their log-sum-exps; the result itself if only one."""
    if count == 1:
        return torch.empty_like(query, memory_format=torch.contiguous_format), None
    parts = query.new_empty((count, *query.shape), dtype=torch.float32)
    return parts, parts.new_empty(parts.shape[:-1])


def merged(parts: Tensor, levels: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What `parts_of` made room for, as one result."""
    if levels is None:
        return parts
    count, rows, heads, width = parts.shape
    out = parts.new_empty((rows, heads, width), dtype=dtype)
    _merge_parts[(rows * heads,)](
        parts, levels, out, rows * heads, count, width, MOST=MOST_PARTS, WIDTH=padded(width)
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
        query: ``[M, WIDTH]`` in the dots' type.
        top, total, pooled: highest score in powers of two, sum of weights, weighted values.
        key_pages, value_pages: at the head.
        table: page of each PAGE rows.
        stop: no row from here on is read.
        limits: each query row sees the cached rows before its own, ``[M]``.
        scale: of the scores, times log2(e).
    """
    j, c = first + tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    page = tl.load(table + j // PAGE, j < stop, other=0).to(tl.int64)
    place = (page * page_stride + (j % PAGE) * row_stride)[:, None] + c[None, :]
    # Unused slots may hold NaN, and 0 · NaN is NaN: they are not read.
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
def store_part(parts, levels, top, total, pooled, place, width, own, WIDTH: tl.constexpr):
    """Writes rows at ``place`` of the parts, those that are ``own``, and their log-sum-exps."""
    c = tl.arange(0, WIDTH)
    some = tl.where(total > 0, total, 1)
    result = pooled / some[:, None]
    where = place.to(tl.int64)[:, None] * width + c[None, :]
    tl.store(parts + where, result.to(parts.dtype.element_ty), own[:, None] & (c < width)[None, :])
    if levels is not None:
        tl.store(levels + place, tl.where(total > 0, top + tl.log2(some), float("-inf")), own)


@triton.jit
def store_empty(levels, place, own):
    """Says of a part's rows that they are nothing: `_merge_parts` does not read them."""
    if levels is not None:
        tl.store(levels + place, tl.full(place.shape, float("-inf"), tl.float32), own)


@triton.jit(do_not_specialize=["rows", "count"])
def _merge_parts(parts, levels, out, rows, count, width, MOST: tl.constexpr, WIDTH: tl.constexpr):
    row, c = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    every = tl.arange(0, MOST)
    top = tl.max(tl.load(levels + every * rows + row, every < count, other=float("-inf")))
    total = 0.0
    result = tl.zeros([WIDTH], tl.float32)
    for first in range(0, count, 8):
        s = first + tl.arange(0, 8)
        level = tl.load(levels + s * rows + row, s < count, other=float("-inf"))
        weights = tl.exp2(level - tl.where(top == float("-inf"), 0, top))
        own = (level > float("-inf"))[:, None] & (c < width)[None, :]
        part = tl.load(parts + (s[:, None] * rows + row) * width + c[None, :], own, other=0)
        total += tl.sum(weights)
        result += tl.sum(part * weights[:, None], 0)
    result /= tl.where(total > 0, total, 1)
    tl.store(out + row * width + c, result.to(out.dtype.element_ty), c < width)
