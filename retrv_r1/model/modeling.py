"""Retrv-R1: a vision-language backbone that reads candidates as compressed tokens.

Every row that enters the language model is a token's embedding or a row of a *row table*: the
items' feature rows, then their content tokens, then the relation tokens of (candidate, query)
pairs. A trainer describes a sequence by integers: token ids, and row references into the table. It
makes three calls: :meth:`~RetrvR1ForConditionalGeneration.row_table` makes the table, ``embed`` the
sequence's embeddings, and ``language_model`` reads them; gradients reach tower and compressor. An
engine gets its rows from :meth:`~RetrvR1ForConditionalGeneration.features` and ``icm``, and uses
the model's embeddings, ``language_model`` and head (``retrv_engine.LanguageModel``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from retrv_r1.model.config import ICMConfig, RetrvR1Config
from retrv_r1.model.conv_tower import ConvTower
from retrv_r1.model.icm import InformationCompressor
from retrv_r1.model.text_tower import TextTower
from retrv_r1.model.tower import tower_rows, use_packed_attention


@dataclass(frozen=True)
class PackedItems:
    """Items as the model takes them, packed without padding.

    Args:
        ids: token id of every feature row, ``[n]``; the image token where a vision row stands.
        cu_seqlens: row offsets of the items, ``[m + 1]``.
        pixel_values: flattened patches of all pictures in item order, ``[p, patch_dim]``, or None.
        image_grid_thw: patch grid of each picture, ``[i, 3]``, or None.
        vision_rows: merged tower rows instead of ``pixel_values``, ``[v, d]``, from a cache.
        picture_rows: number of vision rows; None counts them in ``ids``, which waits for a device.
        text_lengths: number of text rows of each item, its last ones, ``[m]`` on the CPU; None
            counts them too.
    """

    ids: Tensor
    cu_seqlens: Tensor
    pixel_values: Tensor | None = None
    image_grid_thw: Tensor | None = None
    vision_rows: Tensor | None = None
    picture_rows: int | None = None
    text_lengths: Tensor | None = None

    def to(self, device: torch.device | str) -> PackedItems:
        """The same items on a device; offsets and grids stay on the CPU, where they are read."""
        moved = {name: getattr(self, name) for name in ("ids", "pixel_values", "vision_rows")}
        return replace(
            self, **{k: v.to(device, non_blocking=True) for k, v in moved.items() if v is not None}
        )


class RetrvR1PreTrainedModel(PreTrainedModel):
    config_class = RetrvR1Config
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock"]


class RetrvR1ForConditionalGeneration(RetrvR1PreTrainedModel):
    """Backbone, compressor, and embeddings made of token ids and row references."""

    icm: InformationCompressor

    def _init_weights(self, module: nn.Module) -> None:
        """Initializes the whole compressor when its first submodule is visited.

        Since 5.13 transformers skips a module of custom code that itself owns no parameter to
        initialize. The compressor owns none, but all its submodules are visited.
        """
        parts = set(self.icm.modules())
        if module in parts:
            spread = self.config.get_text_config().initializer_range
            self.icm.reset_parameters(spread, spread)
            for part in parts:  # otherwise each of them would initialize everything again
                part._is_hf_initialized = True  # type: ignore[assignment]

    def __init__(self, config: RetrvR1Config) -> None:
        super().__init__(config)
        self.backbone = AutoModelForImageTextToText.from_config(config.backbone_config)
        if config.tower_config is not None:
            self.backbone.model.visual = ConvTower(config.tower_config)
        self.icm = InformationCompressor(config.hidden_size, ICMConfig(**config.icm))
        self.text_tower = (
            TextTower(config.text_tower_config, config.hidden_size)
            if config.text_tower_config is not None
            else None
        )
        use_packed_attention(self.visual)
        self.post_init()

    @property
    def visual(self) -> Any:
        """The vision tower: the backbone's, or a :class:`ConvTower` in its place."""
        return self.backbone.model.visual

    @property
    def language_model(self) -> Any:
        """The decoder without its head."""
        return self.backbone.model.language_model

    def get_input_embeddings(self) -> nn.Module:
        """The table of token embeddings, that of the language model."""
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the table of token embeddings."""
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head: hidden rows to logits."""
        return self.backbone.get_output_embeddings()

    def freeze_towers(self) -> None:
        """Freezes the vision tower and the encoder of the text tower, whose last layer learns."""
        self.visual.requires_grad_(False)
        if self.text_tower is not None:
            self.text_tower.encoder.requires_grad_(False)

    def encode_pictures(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
        """Merged tower rows of packed pictures, ``[v, d]``."""
        return tower_rows(self.visual, pixel_values, image_grid_thw)

    def features(self, items: PackedItems) -> Tensor:
        """Feature rows of packed items: those of texts and vision rows, ``[n, d]``.

        Rows of texts are the text tower's if there is one, otherwise token embeddings.
        """
        rows = self._text_rows(items)
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

    def _text_rows(self, items: PackedItems) -> Tensor:
        """Rows of texts at their places, and anything at the places of vision rows, ``[n, d]``."""
        if self.text_tower is None:
            return self.get_input_embeddings()(items.ids)
        lengths = items.text_lengths
        if lengths is None:
            is_text = (items.ids != self.config.backbone_config.image_token_id).long().cpu()
            before = torch.cat([is_text.new_zeros(1), is_text.cumsum(0)])
            lengths = before[items.cu_seqlens.cpu()].diff()
        stops = items.cu_seqlens[1:].cpu()
        first = (stops - lengths).repeat_interleave(lengths)
        within = torch.arange(len(first)) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        where = (first + within).to(items.ids.device, non_blocking=True)
        rows = self.text_tower(items.ids[where], lengths)
        return rows.new_zeros(len(items.ids), rows.shape[-1]).index_copy(0, where, rows)

    def row_table(self, items: PackedItems, pair_candidate: Tensor, pair_query: Tensor) -> Tensor:
        """The row table ``[n + m + c, d]``: feature rows, content tokens, relation tokens.

        Args:
            items: ``m`` items with ``n`` feature rows.
            pair_candidate: item number of each pair's candidate, ``[c]``.
            pair_query: item number of each pair's query, ``[c]``.
        """
        features = self.features(items)
        tokens = self.icm.tokens(features, items.cu_seqlens, pair_candidate, pair_query)
        return torch.cat([features, *tokens])

    def embed(self, input_ids: Tensor, row_refs: Tensor, table: Tensor) -> Tensor:
        """Embeddings ``[b, l, d]`` of sequences of tokens and rows.

        Args:
            input_ids: token ids, ``[b, l]``.
            row_refs: row of the table at each position, -1 for the token's embedding, ``[b, l]``.
            table: rows of :meth:`row_table`.
        """
        embeds = self.get_input_embeddings()(input_ids)
        # Many positions refer to no row. The gradient of an index adds such equal ones one by one
        # on a GPU, that of `index_select` does not.
        rows = table.index_select(0, row_refs.clamp(min=0).flatten())
        rows = rows.unflatten(0, row_refs.shape).to(embeds.dtype)
        return torch.where((row_refs >= 0)[..., None], rows, embeds)

    def forward(self, **inputs: Any) -> CausalLMOutputWithPast:
        """The backbone's own forward; embeddings of :meth:`embed` go in as ``inputs_embeds``."""
        return self.backbone(**inputs)


AutoConfig.register("retrv_r1", RetrvR1Config)
AutoModel.register(RetrvR1Config, RetrvR1ForConditionalGeneration)
