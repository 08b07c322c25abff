"""What several Triton kernels share: finding an item's chunk, and one step of online attention."""

# mypy: disallow-incomplete-defs=False
# In a kernel only compile-time arguments are annotated; Triton reads the annotation.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)


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
