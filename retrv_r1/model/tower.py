"""The vision tower over a packed batch: which rows attend to which, known on the host.

Attention is plugged into transformers' attention interface.
transformers' path without a flash library runs one attention call a segment: of fifty photos of
26 x 36 patches a windowed layer has 1,000, of four lengths. Here segments of one length are a
plain batch: on a GPU all of them, so that a layer makes as many calls as there are lengths, on a
CPU neighbours alone, because moving rows costs more there than calls: 284 windows of 8 lengths
(15,000 rows of 128 numbers) took 43 ms one by one on one core, 57 by length, 31 by neighbours.
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

# transformers hands cu_seqlens only to implementations whose name holds "flash_attention".
PACKED = "retrv_packed_flash_attention"

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Segments:
    """How a packed batch is cut; made once for all layers that cut it so.

    Attributes:
        offsets: of the segments, on the device, int32 ``[m + 1]``.
        groups: length and number of segments that are a batch, in the order of ``order``.
        order: the rows, those of a batch behind one another, ``[n]``; None if they lie so.
        back: where each row went, ``[n]``.
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
        """Waits for a device only if the offsets lie on it."""
        gather = device.type != "cpu"
        return cls._gathered(cu_seqlens, device) if gather else cls._neighbours(cu_seqlens)

    @classmethod
    def _neighbours(cls, cu_seqlens: Tensor) -> Segments:
        runs = groupby(cu_seqlens.diff().tolist())
        groups = tuple((length, len(list(found))) for length, found in runs)
        return cls(cu_seqlens, groups, None, None)

    @classmethod
    def _gathered(cls, cu_seqlens: Tensor, device: torch.device) -> Segments:
        starts = cu_seqlens.tolist()
        same: dict[int, list[int]] = defaultdict(list)
        for start, stop in pairwise(starts):
            same[stop - start].append(start)
        groups = tuple((length, len(found)) for length, found in same.items())
        offsets = _there(cu_seqlens.int(), device)
        placed = [
            torch.tensor(found)[:, None] + torch.arange(length) for length, found in same.items()
        ]
        order = torch.cat([rows.flatten() for rows in placed])
        if bool((order.diff() == 1).all()):
            return cls(offsets, groups, None, None)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        return cls(offsets, groups, _there(order, device), _there(back, device))


# By identity: a tower hands all its layers the same two tensors of offsets.
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
        query, key, value: ``[1, heads, n, d_h]``.
        cu_seq_lens_q: segment offsets, ``[m + 1]``; on the CPU no layer waits for a device.
    Returns:
        ``[1, n, heads, d_h]`` and no weights.
    """
    segments = _segments(cu_seq_lens_q, query.device)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    attend = _by_kernel if _has_kernel(query) else _by_length
    return attend(q, k, v, segments, scaling)[None], None


def _has_kernel(query: Tensor) -> bool:
    """Whether PyTorch's flash attention of ragged batches takes these rows."""
    return query.is_cuda and query.dtype in _HALF and query.shape[-1] % 8 == 0


def _by_kernel(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scaling: float) -> Tensor:
    """Rows ``[n, heads, d_h]`` by one launch."""
    cut, longest = segments.offsets, segments.longest
    q, k, v = (x.contiguous() for x in (q, k, v))
    out = varlen_attn(q, k, v, cut, cut, longest, longest, scale=scaling)
    assert isinstance(out, Tensor)  # and no statistics, which nobody has asked for
    return out


def _by_length(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scaling: float) -> Tensor:
    """Rows ``[n, heads, d_h]`` by a call for each group of equal segments."""
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
    """Merged rows of packed pictures by a Qwen2.5-VL tower, ``[v, d]``.

    transformers would read the grids on the device, wait for it at every picture, and again in
    every layer.

    Args:
        pixels: flattened patches on the tower's device, ``[p, patch_dim]``.
        grids: patch grid (t, h, w) of each picture, ``[i, 3]``, best on the CPU.
    """
    sizes = visual.spatial_merge_size, visual.window_size, visual.patch_size
    layouts = [_layout(*grid, *sizes) for grid in grids.tolist()]
    firsts = accumulate((len(part.window_index) for part in layouts), initial=0)
    moved = [first + part.window_index for first, part in zip(firsts, layouts, strict=False)]
    return visual(
        pixels.to(visual.dtype),
        grid_thw=grids,
        position_ids=_there(torch.cat([part.position_ids for part in layouts]), pixels.device),
        window_index=_there(torch.cat(moved), pixels.device),
        cu_window_seqlens=_offsets([part.windows for part in layouts]),
        cu_seqlens=_offsets([part.frames for part in layouts]),
    ).pooler_output


class _Layout(NamedTuple):
    """Of one picture: places of its patches, order of its windows, lengths of these and frames."""

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


def _there(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy that does not wait for what the device has still to do."""
    return tensor.to(device, non_blocking=True)


def use_packed_attention(visual: nn.Module) -> None:
    """Makes a Qwen-VL vision tower attend through :func:`packed_vision_attention`."""
    ALL_ATTENTION_FUNCTIONS.register(PACKED, packed_vision_attention)
    visual.config._attn_implementation_internal = PACKED  # type: ignore[union-attr]
