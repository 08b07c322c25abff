"""Retrv-R1: a vision-language backbone that reads candidates as compressed tokens.

Every row that enters the language model is either a token's embedding or a *row* of a table made
in the same forward pass: the items' full features, then their content tokens, then the relation
tokens of (candidate, query) pairs. ``row_refs`` says which, so that a trainer or an engine drives
the model with integers and pictures alone, and gradients reach tower and compressor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from retrv_r1.model.config import ICMConfig, RetrvR1Config
from retrv_r1.model.icm import InformationCompressor
from retrv_r1.model.tower import tower_rows, use_packed_attention


@dataclass(frozen=True)
class PackedItems:
    """Items as the model takes them, packed without padding.

    Args:
        ids: token id of every feature row, ``[n]``; the image token where a vision row stands.
        cu_seqlens: row offsets of the items, ``[m + 1]``.
        pixel_values: flattened patches of all pictures in item order, ``[p, patch_dim]``, or None.
        image_grid_thw: patch grid of each picture, ``[i, 3]``, or None.
        vision_rows: merged tower rows instead of ``pixel_values``, ``[v, d]`` (a feature cache).
        picture_rows: vision rows among ``ids``; None has the ids counted, which waits for a device.
    """

    ids: Tensor
    cu_seqlens: Tensor
    pixel_values: Tensor | None = None
    image_grid_thw: Tensor | None = None
    vision_rows: Tensor | None = None
    picture_rows: int | None = None

    def to(self, device: torch.device | str) -> PackedItems:
        """The same items on another device; offsets and grids stay: they are read on the CPU."""
        moved = {name: getattr(self, name) for name in ("ids", "pixel_values", "vision_rows")}
        return replace(
            self,
            **{k: v.to(device, non_blocking=True) for k, v in moved.items() if v is not None},
        )


class RetrvR1PreTrainedModel(PreTrainedModel):
    config_class = RetrvR1Config
    base_model_prefix = "backbone"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules: ClassVar = ["Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock"]


class RetrvR1ForConditionalGeneration(RetrvR1PreTrainedModel, GenerationMixin):
    """Backbone, compressor, and the construction of embeddings from ids and row references."""

    icm: InformationCompressor

    def _init_weights(self, module: nn.Module) -> None:
        """Initializes the whole compressor when its first module is met.

        Since 5.13 transformers passes over every module of custom code that owns no parameter
        which is still to be made, and the compressor itself owns none; its parts are all met.
        """
        parts = set(self.icm.modules())
        if module in parts:
            spread = self.config.get_text_config().initializer_range
            self.icm.reset_parameters(spread, spread)
            for part in parts:  # or each of them would draw its numbers once more
                part._is_hf_initialized = True  # type: ignore[assignment]

    def __init__(self, config: RetrvR1Config) -> None:
        super().__init__(config)
        self.backbone = AutoModelForImageTextToText.from_config(config.backbone_config)
        self.icm = InformationCompressor(config.hidden_size, ICMConfig(**config.icm))
        use_packed_attention(self.visual)
        self.post_init()

    @property
    def visual(self) -> Any:
        """The vision tower, a module of the backbone's library."""
        return self.backbone.model.visual

    @property
    def language_model(self) -> Any:
        """The decoder without its head."""
        return self.backbone.model.language_model

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.backbone.get_output_embeddings()

    def encode_pictures(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
        """Merged tower rows of packed pictures, ``[v, d]``."""
        return tower_rows(self.visual, pixel_values, image_grid_thw)

    def features(self, items: PackedItems) -> Tensor:
        """Feature rows of packed items: token embeddings and vision rows, ``[n, d]``."""
        rows = self.get_input_embeddings()(items.ids)
        vision = items.vision_rows
        if vision is None and items.pixel_values is not None:
            if items.image_grid_thw is None:
                raise ValueError("pixel_values need image_grid_thw")
            vision = self.encode_pictures(items.pixel_values, items.image_grid_thw)
        if vision is None:
            return rows
        where = (items.ids == self.config.backbone_config.image_token_id)[:, None]
        count = int(where.sum()) if items.picture_rows is None else items.picture_rows
        if count != len(vision):
            raise ValueError(f"{count} image tokens for {len(vision)} vision rows")
        return rows.masked_scatter(where, vision.to(rows.dtype))

    def row_table(self, items: PackedItems, pair_candidate: Tensor, pair_query: Tensor) -> Tensor:
        """All rows that ``row_refs`` can name: ``[n + m + c, d]``.

        The items' ``n`` feature rows, the content tokens of the ``m`` items, and the relation
        tokens of the ``c`` pairs (item numbers of candidate and query).
        """
        features = self.features(items)
        tokens = self.icm.tokens(features, items.cu_seqlens, pair_candidate, pair_query)
        return torch.cat([features, *tokens])

    def embed(self, input_ids: Tensor, row_refs: Tensor | None, table: Tensor | None) -> Tensor:
        """Embeddings of a sequence: a token's where ``row_refs`` is -1, else the table's row."""
        embeds = self.get_input_embeddings()(input_ids)
        if row_refs is None or table is None:
            return embeds
        rows = table[row_refs.clamp(min=0)].to(embeds.dtype)
        return torch.where((row_refs >= 0)[..., None], rows, embeds)

    def forward(
        self,
        input_ids: Tensor | None = None,
        row_refs: Tensor | None = None,
        items: PackedItems | None = None,
        pair_candidate: Tensor | None = None,
        pair_query: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """One pass of the language model.

        Args:
            input_ids: ``[b, l]``.
            row_refs: row of :meth:`row_table` at each position, -1 for none, ``[b, l]``.
            items, pair_candidate, pair_query: what :meth:`row_table` takes.
            inputs_embeds: ready embeddings instead of all of the above, ``[b, l, d]``.
            labels: next-token targets, -100 where there is no loss, ``[b, l]``; logits are then
                made only where a label is, ``[labels, vocabulary]`` in reading order.
            logits_to_keep: logits of the last positions only; 0 for all.
            kwargs: ``position_ids [3, b, l]``, ``attention_mask``, ``past_key_values`` and what
                else the backbone takes. Without ``row_refs`` all of it goes to the backbone
                unchanged.
        """
        if row_refs is None and inputs_embeds is None:
            return self.backbone(
                input_ids=input_ids, labels=labels, logits_to_keep=logits_to_keep, **kwargs
            )
        if inputs_embeds is None:
            if input_ids is None or items is None or pair_candidate is None or pair_query is None:
                raise ValueError("row_refs need input_ids, items, pair_candidate and pair_query")
            table = self.row_table(items, pair_candidate, pair_query)
            inputs_embeds = self.embed(input_ids, row_refs, table)
        out = self.language_model(inputs_embeds=inputs_embeds, **kwargs)
        hidden, loss = out.last_hidden_state, None
        if labels is not None:
            targets = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
            hidden = hidden[targets != -100]
        else:
            hidden = hidden[:, -logits_to_keep:] if logits_to_keep else hidden
        logits = self.get_output_embeddings()(hidden)
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.float(), targets[targets != -100])
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=out.past_key_values)


AutoConfig.register("retrv_r1", RetrvR1Config)
AutoModel.register(RetrvR1Config, RetrvR1ForConditionalGeneration)
