"""Tiny models from scratch, in the shapes that a YAML file gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, BertConfig, PreTrainedTokenizerBase
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from retrv_r1.model.backbone import qwen_config
from retrv_r1.model.chains import phrases
from retrv_r1.model.config import RetrvR1Config
from retrv_r1.model.conv_tower import ConvTowerConfig
from retrv_r1.model.embedder import RetrvEmbedder, RetrvEmbedderConfig
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.model.tokens import train_tokenizer
from retrv_r1.train.chains import CHAIN_INSPECTIONS
from retrv_r1.train.corpus import Corpus


@dataclass(frozen=True)
class EmbedderShape:
    """Shape of a first stage.

    Args:
        vocab_size: entries of the tokenizer.
        side: side in pixels to which pictures are resized.
        embedding_dim: width of the shared space.
        vision: fields of ``ConvTowerConfig``, or of another tower's config whose ``model_type`` it
            names.
        text: fields of ``BertConfig``.
    """

    vocab_size: int
    side: int
    embedding_dim: int
    vision: dict[str, Any]
    text: dict[str, Any]


@dataclass(frozen=True)
class RerankerShape:
    """Shape of a reranker around a first stage's tower.

    Args:
        text: fields of the language model's config; its width is that of the tower's rows.
        icm: fields of ``ICMConfig``.
        prompts: templates that differ from the default ones.
        text_tower: whether the compressor reads texts through the first stage's text encoder.
    """

    text: dict[str, Any]
    icm: dict[str, Any] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)
    text_tower: bool = False


def new_embedder(
    shape: EmbedderShape, texts: Iterable[str]
) -> tuple[RetrvEmbedder, PreTrainedTokenizerBase, Qwen2VLImageProcessorPil]:
    """An untrained first stage, with a tokenizer trained on ``texts``."""
    tokenizer = train_tokenizer(texts, shape.vocab_size, capitals=False)
    fields = dict(shape.vision)
    vision = AutoConfig.for_model(fields.pop("model_type", ConvTowerConfig.model_type), **fields)
    images = Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        min_pixels=shape.side**2,
        max_pixels=shape.side**2,
    )
    config = RetrvEmbedderConfig(
        vision_config=vision,
        text_config=BertConfig(vocab_size=len(tokenizer), **shape.text),
        embedding_dim=shape.embedding_dim,
    )
    return RetrvEmbedder(config), tokenizer, images


def load_preprocessing(path: Path) -> tuple[PreTrainedTokenizerBase, Qwen2VLImageProcessorPil]:
    """Tokenizer and image processor of a first stage; in a checkpoint those of the folder above."""
    if not (path / "tokenizer_config.json").is_file():
        path = path.parent
    return AutoTokenizer.from_pretrained(path), Qwen2VLImageProcessorPil.from_pretrained(path)


def new_reranker(
    shape: RerankerShape, path: Path, embedder: RetrvEmbedder
) -> tuple[RetrvR1ForConditionalGeneration, RetrvR1Processor]:
    """A reranker whose tower is the first stage's and whose other weights are untrained.

    Args:
        path: folder of the first stage, with its tokenizer and preprocessing.
        embedder: the first stage itself.
    """
    tokenizer, images = load_preprocessing(path)
    tower = embedder.config.vision_config
    own = tower if isinstance(tower, ConvTowerConfig) else None
    vision = tower.to_dict() if own is None else _stand_in(own)
    config = RetrvR1Config(
        backbone_config=qwen_config(tokenizer, shape.text, vision),
        tower_config=own,
        text_tower_config=embedder.config.text_config if shape.text_tower else None,
        icm=shape.icm,
        prompts=shape.prompts,
        max_inspections=CHAIN_INSPECTIONS,
        pad_to_square=True,
    )
    model = RetrvR1ForConditionalGeneration(config)
    model.visual.load_state_dict(embedder.visual.state_dict())
    if model.text_tower is not None:
        model.text_tower.encoder.load_state_dict(embedder.text.state_dict())
    return model, RetrvR1Processor(config, tokenizer, images)


def _stand_in(tower: ConvTowerConfig) -> dict[str, Any]:
    """Fields of a backbone's tower that is never used: no layers, and the sizes of our tower."""
    sizes = ("patch_size", "temporal_patch_size", "spatial_merge_size", "out_hidden_size")
    return {
        **{name: getattr(tower, name) for name in sizes},
        **{"depth": 0, "hidden_size": 16, "intermediate_size": 16, "num_heads": 1},
        "fullatt_block_indexes": [],
    }


def texts_of(corpus: Corpus) -> Iterator[str]:
    """Texts to train a tokenizer on: queries, candidates, instructions, phrases of chains."""
    for cell in corpus.cells.values():
        yield from cell.instructions
        for entry in (*cell.queries, *cell.pool):
            if entry.text:
                yield entry.text
                yield " " + entry.text
            if name := entry.meta.get("name"):
                yield " " + name
    for phrase in phrases():
        yield from [phrase] * 50
