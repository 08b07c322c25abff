"""Runs few rows through all layers in one call: Python took a quarter of a step's time."""

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
        linears: four linear layers: queries with keys and values; output; gate with up; down.
        norms: four modules with a weight: the norms before attention, before the gate, of queries
            and of keys; the last two are None if the model has none.
    """

    linears: Sequence[PreparedLinear]
    norms: Sequence[Any]


class AttentionPart(NamedTuple):
    """Rows of a step that attend in one call.

    Args:
        shared: whether they use shared_prefix_attention, over the nodes of a tree, rather than
            paged_attention, over sequences.
        rows: range of the rows in the step.
        page_table: pages of each node or sequence, ``[m, max_pages]``.
        offsets: node_rows ``[m, 2]``, or cu_seqlens ``[m + 1]``.
        lengths: cached rows of each node or sequence, ``[m]``.
    """

    shared: bool
    rows: slice
    page_table: Tensor
    offsets: Tensor
    lengths: Tensor


class DecoderLayers:
    """The layers of a float32 decoder on a CPU; the weights are not copied and may change in place.

    Args:
        layers: weights of each layer.
        heads: number of query heads, number of cache heads, and width of a head.
        eps: epsilon of the norms.
        scale: factor of the attention scores.
    """

    def __init__(
        self, layers: Sequence[LayerWeights], heads: tuple[int, int, int], eps: float, scale: float
    ) -> None:
        self.layers, self.heads, self.eps, self.scale = layers, heads, eps, scale
        self._addresses: list[int] = []
        self._plan = torch.empty(0)

    @functools.cached_property
    def usable(self) -> bool:
        """Whether native kernels are chosen (see `registry.use`) and can read the weights."""
        linears = [linear for layer in self.layers for linear in layer.linears]
        norms = [norm.weight for layer in self.layers for norm in layer.norms if norm is not None]
        return (
            all(linear.uses_kernel for linear in linears)
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
        """Hidden states ``[n, d]`` after the last layer; writes keys and values to the cache.

        Args:
            rows: hidden states before the first layer, ``[n, d]`` float32, at most ``ROWS`` rows.
            cos, sin: cosines and sines of the rows' positions, ``[n, 1, d_h]``; the first half of
                sin is negated.
            cache: ``[layers, 2, pages, H_kv, page size, d_h]``, contiguous float32.
            slots: page and offset within the page of each row, ``[n]`` each.
            parts: parts that cover all rows in order.
        """
        assert len(rows) <= ROWS and cache.is_contiguous()
        for tensor in (rows, cos, sin, cache):
            assert tensor.dtype is torch.float32
        for tensor in (cos, sin, *slots):
            assert tensor.is_contiguous() and len(tensor) == len(rows)
        self._plan_layers()
        out = rows.clone(memory_format=torch.contiguous_format)
        keys, values = cache[0].transpose(2, 3)
        paged = cache_of(keys, values, slots[0][None])  # a placeholder: each part has its own table
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
        """Updates the addresses of the parameters; at every call, because they may be replaced."""
        addresses = [address for layer in self.layers for address in _addresses(layer)]
        if addresses != self._addresses:
            self._addresses, self._plan = addresses, torch.tensor(addresses, device="cpu")

    def _shape(self, cache: Tensor) -> Tensor:
        """The members of DecoderShape in native.h."""
        qkv, _, gate_up, _ = self.layers[0].linears
        weight = next(qkv.parts())[0]
        sizes = [len(self.layers), weight.shape[1], *self.heads, gate_up.width // 2]
        return torch.tensor([*sizes, native.DTYPES[weight.dtype], cache.stride(0)], device="cpu")


def _addresses(layer: LayerWeights) -> list[int]:
    """The members of DecoderLayer in native.h."""
    addresses = []
    for linear in layer.linears:
        for weight, scales, bias in linear.parts():
            addresses += [weight.data_ptr(), native.address(scales), native.address(bias)]
    norms = (None if norm is None else norm.weight for norm in layer.norms)
    return addresses + [native.address(norm) for norm in norms]
