"""One program for each row: it finds the row's span, copies it, writes position and slot."""

# mypy: disallow-incomplete-defs=False

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from retrv_kernels.triton_common import on_tensor_device, padded


@on_tensor_device
def splice_features(
    stores: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    spans: Tensor,
    page_table: Tensor,
    page_size: int,
    rows: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Triton implementation of `retrv_kernels.ops.splice_features`."""
    width = stores[0].shape[1]
    # The number of stores is padded to a power of two with the first store: five kernels at most.
    more = range(padded(len(stores)) - len(stores))
    stores, scales = [*stores, *(stores[0] for _ in more)], [*scales, *(scales[0] for _ in more)]
    # A store can be a whole corpus: it is copied only if its columns are not contiguous.
    packed = [store if store.stride(1) == 1 else store.contiguous() for store in stores]
    embeds = stores[0].new_empty((rows, width), dtype=dtype)
    positions, slots = spans.new_empty((3, rows)), spans.new_empty((rows,))
    _splice[(rows,)](
        tuple(packed),
        tuple(scale if scale is None else scale.contiguous() for scale in scales),
        tuple(store.stride(0) for store in packed),
        spans.contiguous(),
        page_table.contiguous(),
        embeds,
        positions,
        slots,
        len(spans),
        page_table.shape[1],
        rows,
        width,
        PAGE=page_size,
        # 2048 half-precision columns are 16 bytes for each thread of eight warps.
        WIDTH=min(padded(width), 4096),
        num_warps=8 if width > 1024 else 4,
    )
    return embeds, positions, slots


# These differ from step to step and must not cause a new compilation.
@triton.jit(
    do_not_specialize=["count", "pages", "rows"],
    do_not_specialize_on_alignment=["spans", "page_table"],
)
def _splice(
    stores,
    scales,
    strides,
    spans,
    page_table,
    embeds,
    positions,
    slots,
    count,
    pages,
    rows,
    width,
    PAGE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Each store is a separate argument, so that it keeps its dtype and its alignment."""
    number = tl.program_id(0).to(tl.int64)
    span, begin, total = 0, number * 0, number * 0
    for first in range(0, count, 256):
        i = first + tl.arange(0, 256)
        counts = tl.load(spans + i * 8 + 2, i < count, other=0)
        ends = total + tl.cumsum(counts, 0)
        before = (ends <= number) & (i < count)
        span += tl.sum(before.to(tl.int32))
        begin = tl.maximum(begin, tl.max(tl.where(before, ends, 0)))
        total += tl.sum(counts)
    spans += span * 8
    k = number - begin
    row = tl.load(spans + 1) + k
    store = tl.load(spans)
    for first in range(0, width, WIDTH):
        c = first + tl.arange(0, WIDTH)
        for s in tl.static_range(len(stores)):
            if store == s:
                x = tl.load(stores[s] + row * strides[s] + c, c < width, other=0)
                # The interpreter can convert bfloat16 only through float32; float64 is kept.
                if x.dtype != tl.float64:
                    x = x.to(tl.float32)
                if scales[s] is not None:
                    x = x * tl.load(scales[s] + row)
                tl.store(embeds + number * width + c, x.to(embeds.dtype.element_ty), c < width)
    position, grid = tl.load(spans + 3), tl.load(spans + 4)
    divisor = tl.maximum(grid, 1)
    place = tl.load(spans + 6) + k
    k += tl.load(spans + 7)
    picture = grid > 0
    tl.store(positions + number, position + tl.where(picture, 0, k))
    tl.store(positions + rows + number, position + tl.where(picture, k // divisor, k))
    tl.store(positions + 2 * rows + number, position + tl.where(picture, k % divisor, k))
    page = tl.load(page_table + tl.load(spans + 5) * pages + place // PAGE).to(tl.int64)
    tl.store(slots + number, page * PAGE + place % PAGE)
