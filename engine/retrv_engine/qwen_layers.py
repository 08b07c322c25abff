"""Fused decoder layers of the Qwen family.

When one row goes through a layer of transformers, Python and about ninety small operations between
the matrix products take a quarter of the time on two cores. Here, few rows on a CPU go through all
layers in one native call. Many rows, and all rows on a GPU, go through layers of ten launches. The
result is the same. Layers of other families are not replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm
from transformers.activations import SiLUActivation

from retrv_engine.batch import Batch
from retrv_kernels.decoder_layers import DecoderLayers, LayerWeights
from retrv_kernels.linear import PreparedLinear
from retrv_kernels.linear.native import ROWS
from retrv_kernels.ops import unchecked


class Rotary(nn.Module):
    """Cosines and sines for all layers, ``[n, 1, d_h]``; the first half of the sines is negated."""

    def __init__(self, rotary: Any, section: list[int] | None) -> None:
        super().__init__()
        self.rotary, self.section = rotary, section

    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = (self._of_rows(x) for x in self.rotary(hidden, position_ids))
        half = cos.shape[-1] // 2
        return cos, torch.cat([-sin[..., :half], sin[..., half:]], -1)

    def _of_rows(self, values: Tensor) -> Tensor:
        if values.ndim == 4:  # one for each axis of M-RoPE; a section of the width has one axis
            assert self.section is not None
            parts = values.split(self.section * 2, dim=-1)
            values = torch.cat([part[i % 3] for i, part in enumerate(parts)], -1)
        return values[0][:, None]


class Layer(nn.Module):
    """A decoder layer over packed rows.

    Args:
        layer: layer of transformers, whose parameters are shared.
        number: number of the layer in the cache.
        stored: dtype of the linear layers' weights; see :class:`PreparedLinear`.
    """

    def __init__(self, layer: Any, number: int, stored: torch.dtype | None) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.number, self.scale = number, attention.scaling
        self.width = attention.head_dim
        self.cached = attention.k_proj.out_features // self.width
        self.heads = attention.q_proj.out_features // self.width
        parts = attention.q_proj, attention.k_proj, attention.v_proj
        self.qkv = PreparedLinear(*parts, dtype=stored)
        self.o = PreparedLinear(attention.o_proj, dtype=stored)
        self.gate_up = PreparedLinear(mlp.gate_proj, mlp.up_proj, dtype=stored)
        self.down = PreparedLinear(mlp.down_proj, dtype=stored)
        self.before = Norm(layer.input_layernorm)
        self.between = Norm(layer.post_attention_layernorm)
        self.q_norm = self.k_norm = None
        if hasattr(attention, "q_norm"):
            self.q_norm, self.k_norm = Norm(attention.q_norm), Norm(attention.k_norm)

    @property
    def weights(self) -> LayerWeights:
        """All parameters."""
        norms = self.before, self.between, self.q_norm, self.k_norm
        return LayerWeights(
            (self.qkv, self.o, self.gate_up, self.down),
            [None if norm is None else norm.norm for norm in norms],
        )

    def forward(
        self, hidden: Tensor, delta: Tensor | None, rotation: tuple[Tensor, Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """Maps rows ``[n, d]`` and a delta yet to be added to them, ``[n, d]``, to the same."""
        add_norm, rotate, gated = (
            unchecked(op, hidden.device.type, hidden.dtype)
            for op in ("add_rms_norm", "rotate_to_pages", "silu_product")
        )
        hidden, normed = add_norm(hidden, delta, self.before.weight, self.before.eps)
        qkv = self.qkv(normed).view(len(hidden), self.heads + 2 * self.cached, self.width)
        pages = batch.cache.layer(self.number)
        norms = [None if norm is None else norm.weight for norm in (self.q_norm, self.k_norm)]
        eps = self.before.eps if self.q_norm is None else self.q_norm.eps
        query = rotate(qkv, *rotation, *pages, batch.slots, self.heads, *norms, eps)
        out = batch.read(self.number, query, self.scale)
        delta = self.o(out.view(len(hidden), -1))
        hidden, normed = add_norm(hidden, delta, self.between.weight, self.between.eps)
        return hidden, self.down(gated(self.gate_up(normed)))


class Layers(nn.Module):
    """All layers of a decoder in one module, which takes the place of transformers' layers."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        first = layers[0]
        heads = first.heads, first.cached, first.width
        weights = [layer.weights for layer in layers]
        self.fused = DecoderLayers(weights, heads, first.before.eps, first.scale)

    def forward(
        self,
        hidden: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        retrv_batch: Batch,
        **_: object,
    ) -> Tensor:
        """Maps ``hidden [1, n, d]`` to the same shape."""
        if hidden.dtype is torch.float32 and hidden.shape[1] <= ROWS and self.fused.usable:
            cos, sin = position_embeddings
            cache, places = retrv_batch.cache.values, retrv_batch.places
            return self.fused(hidden[0], cos, sin, cache, places, retrv_batch.parts)[None]
        rows, delta = hidden[0], None
        for layer in self.layers:
            rows, delta = layer(rows, delta, position_embeddings, retrv_batch)
        assert delta is not None, "there is a layer"
        return (rows + delta)[None]


class Norm(nn.Module):
    """RMSNorm in one operation."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.norm, self.eps = norm, norm.variance_epsilon

    @property
    def weight(self) -> Tensor:
        """``[d]``."""
        return self.norm.weight

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, x.shape[-1:], self.weight, self.eps)


def fuse_layers(decoder: Any, stored: torch.dtype | None) -> bool:
    """Replaces a text model's layers by :class:`Layers`; False if they are of another family."""
    if not all(map(_is_qwen, decoder.layers)):
        return False
    section = (decoder.config.rope_parameters or {}).get("mrope_section")
    decoder.rotary_emb = Rotary(decoder.rotary_emb, section)
    layers = [Layer(layer, number, stored) for number, layer in enumerate(decoder.layers)]
    decoder.layers = nn.ModuleList([Layers(layers)])
    decoder.norm = Norm(decoder.norm)
    return True


_LINEARS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


def _is_qwen(layer: Any) -> bool:
    """Whether a layer has exactly the parts that :class:`Layer` computes."""
    children = {name for name, _ in layer.named_children()}
    if children != {*_LINEARS, "input_layernorm", "post_attention_layernorm"}:
        return False
    inside = {name for name, _ in layer.self_attn.named_children()} - {"rotary_emb"}
    if inside - {"q_norm", "k_norm"} != {*_LINEARS["self_attn"]}:
        return False
    parts = [getattr(layer, part).get_submodule(n) for part, own in _LINEARS.items() for n in own]
    plain = all(type(part) is nn.Linear for part in parts)
    return plain and isinstance(layer.mlp.act_fn, nn.SiLU | SiLUActivation)
