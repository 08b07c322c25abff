"""The model of the first stage: a two-tower embedder with score fusion.

A picture is encoded by a vision tower, Qwen2.5-VL's or a convolutional one, a text by a small
bidirectional encoder; each is pooled and projected to a unit vector. The vector of an item with
both is the normed sum of the two, the score fusion of UniIR (arXiv 2311.17136). The similarity is
the dot product.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, BertConfig, BertModel, PretrainedConfig, PreTrainedModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
)

from retrv_r1.model.conv_tower import ConvTower, ConvTowerConfig
from retrv_r1.model.tower import tower_rows, use_packed_attention

WEIGHTS = "model.safetensors"
"""File of the weights in a folder."""


def shared_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a reranker's two towers, under the names that they have in a first stage."""
    found = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        for tower, own in ((".visual.", "visual."), ("text_tower.encoder.", "text.")):
            _, inside, rest = name.partition(tower)
            if inside:
                found[own + rest] = tensor
    return found


def _tower_class(model_type: str | None) -> Any:
    """The tower of a kind of config; Qwen2.5-VL's by default."""
    convolutional = model_type == ConvTowerConfig.model_type
    return ConvTower if convolutional else Qwen2_5_VisionTransformerPretrainedModel


class RetrvEmbedderConfig(PretrainedConfig):
    """Config of vision tower and text encoder, and the width of the shared space.

    Args:
        reads_instructions: whether queries were embedded behind their instruction in training, as
            UniIR's and LamRA's embedders do; an evaluation then embeds them so.
        shares_towers: whether the weights of both encoders are those of the reranker in the folder
            above, whose towers they are, and are not stored again (``retrv_r1.command.ship``).
    """

    model_type = "retrv_r1_embedder"
    sub_configs: ClassVar = {"vision_config": AutoConfig, "text_config": AutoConfig}

    def __init__(
        self,
        vision_config: PretrainedConfig | dict[str, Any] | None = None,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        embedding_dim: int = 128,
        reads_instructions: bool = False,
        shares_towers: bool = False,
        **kwargs: Any,
    ) -> None:
        vision = vision_config if isinstance(vision_config, dict) else {}
        text = text_config if isinstance(text_config, dict) else {}
        self.vision_config = (
            vision_config
            if isinstance(vision_config, PretrainedConfig)
            else _tower_class(vision.get("model_type")).config_class(**vision)
        )
        self.text_config = (
            text_config if isinstance(text_config, PretrainedConfig) else BertConfig(**text)
        )
        self.embedding_dim = embedding_dim
        self.reads_instructions = reads_instructions
        self.shares_towers = shares_towers
        super().__init__(**kwargs)


class RetrvEmbedder(PreTrainedModel):
    """Embeds pictures and texts as unit vectors, ``[m, embedding_dim]``."""

    config_class = RetrvEmbedderConfig
    _supports_sdpa = True

    def __init__(self, config: RetrvEmbedderConfig) -> None:
        super().__init__(config)
        self.visual = _tower_class(config.vision_config.model_type)._from_config(
            config.vision_config
        )
        self.text = BertModel(config.text_config, add_pooling_layer=False)
        self.picture_projection = nn.Linear(
            config.vision_config.out_hidden_size, config.embedding_dim
        )
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.embedding_dim)
        self.logit_scale = nn.Parameter(torch.tensor(2.7))
        use_packed_attention(self.visual)
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, config: Any = None, **kwargs: Any
    ) -> Any:
        """Loads a first stage as transformers does; weights that it shares, from the folder above.

        The model owns its copy of them and is saved whole.
        """
        folder = pretrained_model_name_or_path
        if config is None:
            config = RetrvEmbedderConfig.from_pretrained(folder)
        if not config.shares_towers:
            return super().from_pretrained(folder, *args, config=config, **kwargs)
        folder = Path(folder)
        weights = shared_weights(folder.parent) | load_file(folder / WEIGHTS)
        config.shares_towers = False
        return super().from_pretrained(None, *args, config=config, state_dict=weights, **kwargs)

    def pool_pictures(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
        """Mean tower row of packed pictures, ``[i, d]``."""
        rows = tower_rows(self.visual, pixel_values, image_grid_thw)
        sizes = image_grid_thw.prod(-1) // self.visual.spatial_merge_unit
        return torch.segment_reduce(rows, "mean", lengths=sizes.to(rows.device))

    def project_pictures(self, pooled: Tensor) -> Tensor:
        """Unit vectors of pooled pictures, ``[i, embedding_dim]``."""
        return nn.functional.normalize(self.picture_projection(pooled), dim=-1)

    def embed_pictures(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
        """Unit vectors of packed pictures, ``[i, embedding_dim]``."""
        return self.project_pictures(self.pool_pictures(pixel_values, image_grid_thw))

    def embed_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Unit vectors of padded texts ``[t, l]``, ``[t, embedding_dim]``."""
        hidden = self.text(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        return nn.functional.normalize(self.text_projection(pooled), dim=-1)

    @staticmethod
    def fuse(
        size: int, pictures: tuple[Tensor, Tensor] | None, texts: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Score fusion into unit vectors ``[size, e]``.

        Args:
            size: number of items.
            pictures: item numbers and vectors of the pictures.
            texts: item numbers and vectors of the texts.
        """
        parts = [part for part in (pictures, texts) if part is not None]
        if not parts:
            raise ValueError("items without pictures and texts have no embedding")
        total = parts[0][1].new_zeros(size, parts[0][1].shape[-1])
        for index, vectors in parts:
            total = total.index_add(0, index, vectors)
        return nn.functional.normalize(total, dim=-1)
