"""Few rows through all layers at once: one call a step, where Python was a quarter of the time."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retrv_kernels import native
from retrv_kernels.linear import PreparedLinear
from retrv_kernels.linear.native import ROWS
from retrv_kernels.paged_attention.native import cache_of


class LayerWeights(NamedTuple):
    """Parameters of a decoder layer of the Qwen family.

    Args:
        linears: of queries, keys and values; of the output; of gate and up; down.
        norms: modules with a weight: before attention and before the gate; of queries and keys, or
            None where there are none.
    """

    linears: Sequence[PreparedLinear]
    norms: Sequence[Any]


class AttentionPart(NamedTuple):
    """Rows of a step that attend together.

    Args:
        shared: by shared_prefix_attention, over the nodes of a tree, or by paged_attention.
        rows: where they are in the step.
        page_table: ``[m, most]`` of nodes or sequences.
        offsets: node_rows ``[m, 2]``, or cu_seqlens ``[m + 1]``.
        lengths: rows of each node or sequence in the cache, ``[m]``.
    """

    shared: bool
    rows: slice
    page_table: Tensor
    offsets: Tensor
    lengths: Tensor


class DecoderLayers:
    """The layers of a float32 decoder on a CPU; weights are shared and may change in place.

    Args:
        heads: of queries and of the cache, and their width.
    """

    def __init__(
        self, layers: Sequence[LayerWeights], heads: tuple[int, int, int], eps: float, scale: float
    ) -> None:
        self.layers, self.heads, self.eps, self.scale = layers, heads, eps, scale
        self._addresses: list[int] = []
        self._plan = torch.empty(0)

    @functools.cached_property
    def usable(self) -> bool:
        """Whether there is a kernel that can read the parameters; RETRV_KERNELS has a say."""
        linears = [linear for layer in self.layers for linear in layer.linears]
        norms = [norm.weight for layer in self.layers for norm in layer.norms if norm is not None]
        return (
            all(linear.direct for linear in linears)
            and len({weight.dtype for linear in linears for weight, _, _ in linear.parts()}) == 1
            and all(norm.dtype is torch.float32 and norm.is_contiguous() for norm in norms)
        )

    def __call__(
        self,
        rows: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: Tensor,
        slots: tuple[Tensor, Tensor],
        parts: Sequence[AttentionPart],
    ) -> Tensor:
        """``rows [n, d]`` behind the last layer, their keys and values in the cache.

        Args:
            rows: ``ROWS`` at most.
            cos, sin: ``[n, 1, d_h]``, the sines of the first half negated.
            cache: ``[layers, 2, pages, H_kv, page size, d_h]``, contiguous float32.
            slots: page and offset of each row, ``[n]`` each.
            parts: all rows in order.
        """
        assert len(rows) <= ROWS and cache.is_contiguous()
        for tensor in (rows, cos, sin, cache):
            assert tensor.dtype is torch.float32
        for tensor in (cos, sin, *slots):
            assert tensor.is_contiguous() and len(tensor) == len(rows)
        self._plan_layers()
        out = rows.clone(memory_format=torch.contiguous_format)
        keys, values = cache[0].transpose(2, 3)
        paged = cache_of(keys, values, slots[0][None])  # each part has a table of its own
        bounds = [part.rows.indices(len(rows))[:2] for part in parts]
        places = torch.tensor(
            [
                [
                    part.shared,
                    first,
                    stop - first,
                    part.page_table.data_ptr(),
                    part.page_table.shape[1],
                    part.offsets.data_ptr(),
                    part.lengths.data_ptr(),
                    len(part.lengths),
                ]
                for part, (first, stop) in zip(parts, bounds, strict=True)
            ],
            device="cpu",
        )
        shape = self._shape(cache)
        native.function("decoder_layers")(
            self._plan.data_ptr(),
            shape.data_ptr(),
            self.eps,
            out.data_ptr(),
            len(rows),
            cos.data_ptr(),
            sin.data_ptr(),
            paged.data_ptr(),
            slots[0].data_ptr(),
            slots[1].data_ptr(),
            places.data_ptr(),
            len(parts),
            self.scale,
            torch.get_num_threads(),
        )
        return out

    def _plan_layers(self) -> None:
        """Where the parameters are: looked at in every call, as they may be replaced."""
        addresses = [address for layer in self.layers for address in _addresses(layer)]
        if addresses != self._addresses:
            self._addresses, self._plan = addresses, torch.tensor(addresses, device="cpu")

    def _shape(self, cache: Tensor) -> Tensor:
        """DecoderShape of native.h."""
        qkv, _, gate_up, _ = self.layers[0].linears
        weight = next(qkv.parts())[0]
        sizes = [len(self.layers), weight.shape[1], *self.heads, gate_up.width // 2]
        return torch.tensor([*sizes, native.DTYPES[weight.dtype], cache.stride(0)], device="cpu")


def _addresses(layer: LayerWeights) -> list[int]:
    """A layer's row of the plan: DecoderLayer of native.h."""
    addresses = []
    for linear in layer.linears:
        for weight, scales, bias in linear.parts():
            addresses += [weight.data_ptr(), native.address(scales), native.address(bias)]
    norms = (None if norm is None else norm.weight for norm in layer.norms)
    return addresses + [native.address(norm) for norm in norms]
