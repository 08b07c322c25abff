"""From a configuration to a stage: data and models that stages are built from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import set_seed

from retrv_r1.model.embedder import RetrvEmbedder
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.train.config import ConfigError, RunConfig, stage_class
from retrv_r1.train.corpus import Corpus
from retrv_r1.train.entry_vectors import EntryEmbedder, Vectors, embed_cells
from retrv_r1.train.machine import Machine
from retrv_r1.train.pictures import PictureBank

if TYPE_CHECKING:
    from retrv_r1.train.stage import Stage


@dataclass(frozen=True)
class Setup:
    """What a stage is built from; data and models are loaded when they are first used.

    Attributes:
        config: the stage's configuration file.
        machine: device, dtype and workers of the training run.
    """

    config: RunConfig
    machine: Machine

    @cached_property
    def pictures(self) -> PictureBank:
        """All pictures of the data set, on the machine's device."""
        return PictureBank.load(self.config.data).to(self.machine.device)

    @cached_property
    def train(self) -> Corpus:
        """The split for training."""
        return Corpus(self.config.data, "train", self.pictures)

    @cached_property
    def val(self) -> Corpus:
        """The split for validation."""
        return Corpus(self.config.data, "val", self.pictures)

    def result(self, name: str) -> Path:
        """The folder that ``init`` names as an earlier stage's result."""
        config = self.config
        if name not in config.init:
            raise ConfigError(f"{config.source}: init.{name} is missing")
        path = config.init[name]
        if not (path / "config.json").is_file():
            raise ConfigError(
                f"{config.source}: no finished {name} stage at {path}; train it first"
            )
        return path

    def reranker(self) -> tuple[RetrvR1ForConditionalGeneration, RetrvR1Processor]:
        """The reranker of an earlier stage, ready to be trained."""
        path = self.result("model")
        model = RetrvR1ForConditionalGeneration.from_pretrained(path)
        self.machine.prepare(model)
        return model, RetrvR1Processor.from_pretrained(path, model.config)

    @cached_property
    def embedder(self) -> RetrvEmbedder:
        """The first stage, which is not trained further."""
        embedder = RetrvEmbedder.from_pretrained(self.result("embed"), dtype=torch.float32)
        return embedder.to(self.machine.device)

    def vectors(self, corpus: Corpus, processor: RetrvR1Processor) -> dict[str, Vectors]:
        """First-stage vectors of a split; texts are cut to the stage's ``max_text`` tokens."""
        entries = EntryEmbedder(
            self.embedder,
            processor.tokenizer,
            processor.image_processor,
            corpus,
            self.config.stage.max_text,
        )
        return embed_cells(entries, corpus)


def build_stage(config: RunConfig, machine: Machine | None = None) -> Stage:
    """Builds a stage, for a CPU by default; this seeds PyTorch and sets its threads."""
    if config.loop.threads:
        torch.set_num_threads(config.loop.threads)
    set_seed(config.loop.seed)
    return stage_class(config.name)(Setup(config, machine or Machine()))
