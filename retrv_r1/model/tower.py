"""The vision tower on packed pictures, with an attention that batches segments of one length.

Attention is registered with transformers' attention interface. Without a flash library
transformers makes one attention call per segment: for fifty photos of 26 x 36 patches a windowed
layer makes 1,000 calls, although segments have only four lengths. Here segments of one length are
one call. On a GPU these are all segments of a length. On a CPU they are adjacent segments, because
there moving rows costs more than calls: 284 windows of 8 lengths (15,000 rows of 128 numbers) took
43 ms one by one on one core, 57 ms by length, 31 ms by adjacent segments.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_position_ids,
    get_vision_window_index,
)

from retrv_r1.model.conv_tower import ConvTower

# transformers passes cu_seqlens only to implementations whose name contains "flash_attention".
PACKED = "retrv_packed_flash_attention"

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Segments:
    """Segments of a packed batch, the same for all layers with these offsets.

    Attributes:
        offsets: row offsets of the segments on the device, int32 ``[m + 1]``.
        groups: length and number of the segments of each call.
        order: row numbers in the order of the groups, ``[n]``; None if rows are in that order.
        back: position of each row in ``order``, ``[n]``.
    """

    offsets: Tensor
    groups: tuple[tuple[int, int], ...]
    order: Tensor | None
    back: Tensor | None

    @property
    def longest(self) -> int:
        return max(length for length, _ in self.groups)

    @classmethod
    def of(cls, cu_seqlens: Tensor, device: torch.device) -> Segments:
        """Groups segments; waits for a device only if the offsets are on it."""
        gather = device.type != "cpu"
        return cls._by_length(cu_seqlens, device) if gather else cls._adjacent(cu_seqlens)

    @classmethod
    def _adjacent(cls, cu_seqlens: Tensor) -> Segments:
        runs = groupby(cu_seqlens.diff().tolist())
        groups = tuple((length, len(list(found))) for length, found in runs)
        return cls(cu_seqlens, groups, None, None)

    @classmethod
    def _by_length(cls, cu_seqlens: Tensor, device: torch.device) -> Segments:
        starts = cu_seqlens.tolist()
        same: dict[int, list[int]] = defaultdict(list)
        for start, stop in pairwise(starts):
            same[stop - start].append(start)
        groups = tuple((length, len(found)) for length, found in same.items())
        offsets = _copied(cu_seqlens.int(), device)
        placed = [
            torch.tensor(found)[:, None] + torch.arange(length) for length, found in same.items()
        ]
        order = torch.cat([rows.flatten() for rows in placed])
        if bool((order.diff() == 1).all()):
            return cls(offsets, groups, None, None)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        return cls(offsets, groups, _copied(order, device), _copied(back, device))


# Tensors are keys by identity: a tower passes the same two tensors of offsets to all its layers.
_segments = lru_cache(maxsize=8)(Segments.of)


def packed_vision_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    cu_seq_lens_q: Tensor,
    **_: object,
) -> tuple[Tensor, None]:
    """Full attention inside each segment of a packed batch.

    Args:
        query, key, value: projected rows, ``[1, heads, n, d_h]``.
        cu_seq_lens_q: row offsets of the segments, ``[m + 1]``; on the CPU no layer waits for a
            device.
    Returns:
        Attended rows ``[1, n, heads, d_h]``, and None for the weights.
    """
    segments = _segments(cu_seq_lens_q, query.device)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    attend = _varlen if _has_kernel(query) else _grouped
    return attend(q, k, v, segments, scaling)[None], None


def _has_kernel(query: Tensor) -> bool:
    """Whether PyTorch's variable-length flash attention supports these rows."""
    return query.is_cuda and query.dtype in _HALF and query.shape[-1] % 8 == 0


def _varlen(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scaling: float) -> Tensor:
    """Attends rows ``[n, heads, d_h]`` in one launch."""
    cut, longest = segments.offsets, segments.longest
    q, k, v = (x.contiguous() for x in (q, k, v))
    out = varlen_attn(q, k, v, cut, cut, longest, longest, scale=scaling)
    assert isinstance(out, Tensor)  # statistics come only if asked for
    return out


def _grouped(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scaling: float) -> Tensor:
    """Attends rows ``[n, heads, d_h]`` in one call for each group of equal segments."""
    heads = q.shape[1:]
    if segments.order is not None:
        rows = (x.flatten(1).index_select(0, segments.order) for x in (q, k, v))
        q, k, v = (x.unflatten(1, heads) for x in rows)
    parts = zip(*(x.split([a * b for a, b in segments.groups]) for x in (q, k, v)), strict=True)
    found = []
    for (_, count), part in zip(segments.groups, parts, strict=True):
        one, two, three = (x.unflatten(0, (count, -1)).transpose(1, 2) for x in part)
        out = nn.functional.scaled_dot_product_attention(one, two, three, scale=scaling)
        found.append(out.transpose(1, 2).flatten(0, 1))
    out = torch.cat(found) if len(found) > 1 else found[0]
    if segments.back is None:
        return out
    return out.flatten(1).index_select(0, segments.back).unflatten(1, heads)


def tower_rows(visual: Any, pixels: Tensor, grids: Tensor) -> Tensor:
    """Merged rows of packed pictures from a vision tower, ``[v, d]``.

    For a Qwen2.5-VL tower indices are computed on the host: transformers would wait for the device
    at every picture and in every layer.

    Args:
        pixels: flattened patches on the tower's device, ``[p, patch_dim]``.
        grids: patch grid (t, h, w) of each picture, ``[i, 3]``, preferably on the CPU.
    """
    if isinstance(visual, ConvTower):
        return visual(pixels.to(visual.dtype), grids)
    sizes = visual.spatial_merge_size, visual.window_size, visual.patch_size
    layouts = [_layout(*grid, *sizes) for grid in grids.tolist()]
    firsts = accumulate((len(part.window_index) for part in layouts), initial=0)
    moved = [first + part.window_index for first, part in zip(firsts, layouts, strict=False)]
    return visual(
        pixels.to(visual.dtype),
        grid_thw=grids,
        position_ids=_copied(torch.cat([part.position_ids for part in layouts]), pixels.device),
        window_index=_copied(torch.cat(moved), pixels.device),
        cu_window_seqlens=_offsets([part.windows for part in layouts]),
        cu_seqlens=_offsets([part.frames for part in layouts]),
    ).pooler_output


class _Layout(NamedTuple):
    """Indices of one picture.

    Attributes:
        position_ids: position (h, w) of each patch.
        window_index: order of the merged rows, window by window.
        windows: lengths of the windows in patches.
        frames: lengths of the frames in patches.
    """

    position_ids: Tensor
    window_index: Tensor
    windows: Tensor
    frames: Tensor


@lru_cache(maxsize=1024)
def _layout(t: int, h: int, w: int, merge: int, window: int, patch: int) -> _Layout:
    grid = torch.tensor([[t, h, w]])
    index, cuts = get_vision_window_index(grid, merge, window, patch)
    places = get_vision_position_ids(grid, merge)
    return _Layout(places, index, cuts.diff(), get_vision_cu_seqlens(grid).diff())


def _offsets(lengths: Sequence[Tensor]) -> Tensor:
    return nn.functional.pad(torch.cat(list(lengths)).cumsum(0, dtype=torch.int32), (1, 0))


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, made without waiting for it."""
    return tensor.to(device, non_blocking=True)


def use_packed_attention(visual: nn.Module) -> None:
    """Makes a Qwen-VL vision tower use :func:`packed_vision_attention`."""
    if isinstance(visual, ConvTower):  # which has no attention
        return
    ALL_ATTENTION_FUNCTIONS.register(PACKED, packed_vision_attention)
    visual.config._attn_implementation_internal = PACKED  # type: ignore[union-attr]
