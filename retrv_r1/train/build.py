"""From a YAML file to a stage that can be trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import (
    AutoTokenizer,
    BertConfig,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    set_seed,
)
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from retrv_r1.model.config import RetrvR1Config
from retrv_r1.model.embedder import RetrvEmbedder, RetrvEmbedderConfig
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.model.tokens import TokenIds, train_tokenizer
from retrv_r1.train.align import AlignConfig, AlignStage
from retrv_r1.train.anchors import Concepts
from retrv_r1.train.chains import CHAIN_INSPECTIONS, corpus_of_phrases
from retrv_r1.train.corpus import Corpus
from retrv_r1.train.embed import EmbedConfig, EmbedStage
from retrv_r1.train.entry_vectors import EntryEmbedder, Vectors, embed_cells
from retrv_r1.train.lists import ListCollator
from retrv_r1.train.loop import LoopConfig, Stage
from retrv_r1.train.machine import Machine
from retrv_r1.train.pictures import PictureBank
from retrv_r1.train.pretrain import PretrainConfig, PretrainStage
from retrv_r1.train.sft import SFTConfig, SFTStage
from retrv_r1.train.validation import ListValidation
from retrv_r1.types import RetrvError

_STAGE_CONFIGS = {
    "embed": EmbedConfig,
    "pretrain": PretrainConfig,
    "align": AlignConfig,
    "sft": SFTConfig,
}


class ConfigError(RetrvError, ValueError):
    """A training configuration that cannot be used."""


@dataclass(frozen=True)
class Settings:
    """One stage's configuration file.

    Attributes:
        data: an M-BEIR directory with pictures (``retrv-r1 data pictographs``).
        out: where the run's files go.
        init: results of earlier stages by name (``embed``, ``model``).
        model: shapes of what the stage makes from scratch.
        stage: the stage's own options.
    """

    name: str
    source: Path
    data: Path
    out: Path
    init: dict[str, Path]
    model: dict[str, Any]
    loop: LoopConfig
    stage: Any


def _checked(kind: type, values: dict[str, Any], where: str) -> Any:
    known = {f.name for f in fields(kind)}
    if unknown := set(values) - known:
        raise ConfigError(f"{where}: unknown options {sorted(unknown)}; known: {sorted(known)}")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def read_config(stage: str, path: Path) -> Settings:
    """Reads and checks a configuration file; paths in it are relative to the working directory."""
    if stage not in _STAGE_CONFIGS:
        raise ConfigError(f"unknown stage {stage!r}; choose one of {', '.join(_STAGE_CONFIGS)}")
    if not path.is_file():
        raise ConfigError(f"no configuration file {path}")
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(raw, dict) or not {"data", "out", "loop"} <= set(raw):
        raise ConfigError(f"{path} needs at least data, out and loop")
    loop = _checked(LoopConfig, raw["loop"], f"{path}: loop")
    options = dict(raw.get("stage") or {})
    if "steps" in {f.name for f in fields(_STAGE_CONFIGS[stage])}:
        options.setdefault("steps", loop.steps)
    return Settings(
        name=stage,
        source=path,
        data=Path(raw["data"]),
        out=Path(raw["out"]),
        init={name: Path(value) for name, value in (raw.get("init") or {}).items()},
        model=raw.get("model") or {},
        loop=loop,
        stage=_checked(_STAGE_CONFIGS[stage], options, f"{path}: stage"),
    )


def build_stage(settings: Settings, machine: Machine | None = None) -> Stage:
    """Loads data and models and builds the stage, on a CPU by default."""
    machine = machine or Machine()
    if settings.loop.threads:
        torch.set_num_threads(settings.loop.threads)
    set_seed(settings.loop.seed)
    bank = PictureBank.load(settings.data).to(machine.device)
    train = Corpus(settings.data, "train", bank)
    if settings.name == "embed":
        val = Corpus(settings.data, "val", bank)
        return _embed(settings, train, val, machine)
    model, processor = _model(settings, train)
    machine.take(model)
    embedder = RetrvEmbedder.from_pretrained(_init(settings, "embed"), dtype=torch.float32)
    embedder.to(machine.device)
    max_text = settings.stage.max_text

    def vectors(corpus: Corpus) -> dict[str, Vectors]:
        first_stage = EntryEmbedder(
            embedder, processor.tokenizer, processor.image_processor, corpus, max_text
        )
        return embed_cells(first_stage, corpus)

    known, seed = vectors(train), settings.loop.seed
    if settings.name == "align":
        return AlignStage(model, processor, train, known, settings.stage, seed)
    val = Corpus(settings.data, "val", bank)
    validation = ListValidation(val, vectors(val), ListCollator(processor, max_text))
    if settings.name == "pretrain":
        return PretrainStage(
            model,
            processor,
            train,
            known,
            validation,
            settings.stage,
            seed,
            fresh="model" not in settings.init,
        )
    return SFTStage(model, processor, embedder, train, known, validation, settings.stage, seed)


def _init(settings: Settings, name: str) -> Path:
    if name not in settings.init:
        raise ConfigError(f"{settings.source}: init.{name} is missing")
    path = settings.init[name]
    if not (path / "config.json").is_file():
        raise ConfigError(f"{settings.source}: no finished {name} stage at {path}; train it first")
    return path


def _embed(settings: Settings, train: Corpus, val: Corpus, machine: Machine) -> EmbedStage:
    shape = settings.model
    tokenizer = train_tokenizer(texts_of(train), shape["vocab_size"])
    vision = Qwen2_5_VLVisionConfig(**shape["vision"])
    side = shape["side"]
    processor = Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        min_pixels=side * side,
        max_pixels=side * side,
    )
    config = RetrvEmbedderConfig(
        vision_config=vision,
        text_config=BertConfig(vocab_size=len(tokenizer), **shape["text"]),
        embedding_dim=shape["embedding_dim"],
    )
    model = RetrvEmbedder(config)
    machine.take(model)
    return EmbedStage(model, tokenizer, processor, train, val, settings.stage, settings.loop.seed)


def _model(
    settings: Settings, train: Corpus
) -> tuple[RetrvR1ForConditionalGeneration, RetrvR1Processor]:
    """The model to go on with; for ``pretrain`` without one, a new one around embed's tower."""
    if settings.name != "pretrain" or "model" in settings.init:
        path = _init(settings, "model")
        model = RetrvR1ForConditionalGeneration.from_pretrained(path)
        return model, RetrvR1Processor.from_pretrained(path, model.config)
    path = _init(settings, "embed")
    embedder = RetrvEmbedder.from_pretrained(path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path)
    config = _tiny_config(settings, embedder, tokenizer, Concepts(train).count)
    model = RetrvR1ForConditionalGeneration(config)
    model.visual.load_state_dict(embedder.visual.state_dict())
    images = Qwen2VLImageProcessorPil.from_pretrained(path)
    return model, RetrvR1Processor(config, tokenizer, images)


def _tiny_config(
    settings: Settings, embedder: RetrvEmbedder, tokenizer: PreTrainedTokenizerBase, concepts: int
) -> RetrvR1Config:
    icm = dict(settings.model.get("icm") or {})
    if icm.get("memory_size") == "concepts":
        icm["memory_size"] = concepts
    ids = TokenIds.of(tokenizer)
    vocabulary = tokenizer.get_vocab()
    vision = embedder.config.vision_config.to_dict()
    backbone = Qwen2_5_VLConfig(
        text_config={
            **settings.model["text"],
            "vocab_size": len(tokenizer),
            "hidden_size": vision["out_hidden_size"],
            "bos_token_id": None,
            "eos_token_id": ids.end,
            "pad_token_id": ids.pad,
            "tie_word_embeddings": True,
        },
        vision_config=vision,
        image_token_id=ids.image_pad,
        video_token_id=vocabulary["<|video_pad|>"],
        vision_start_token_id=ids.vision_start,
        vision_end_token_id=ids.vision_end,
        tie_word_embeddings=True,
    )
    return RetrvR1Config(
        backbone_config=backbone,
        icm=icm,
        prompts=settings.model.get("prompts"),
        max_inspections=CHAIN_INSPECTIONS,
        pad_to_square=True,
    )


def texts_of(corpus: Corpus) -> Iterator[str]:
    """Every text the tokenizer should know well: queries, candidates, instructions, chains."""
    for cell in corpus.cells.values():
        yield from cell.instructions
        for entry in (*cell.queries, *cell.pool):
            if entry.text:
                yield entry.text
                yield " " + entry.text
            if name := entry.meta.get("name"):
                yield " " + name
    for phrase in corpus_of_phrases():
        yield from [phrase] * 50
