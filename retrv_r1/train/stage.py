"""What a training stage is made of, and what it gives: batches, a loss, a result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, set_seed
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from retrv_r1.model.embedder import RetrvEmbedder
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.train.config import ConfigError, RunConfig, stage_class
from retrv_r1.train.corpus import Corpus
from retrv_r1.train.entry_vectors import EntryEmbedder, Ranking, Retrieved, Vectors, embed_cells
from retrv_r1.train.live_rows import LiveRows
from retrv_r1.train.machine import Machine, no_collection
from retrv_r1.train.named import NamedPictures
from retrv_r1.train.naming import Naming
from retrv_r1.train.schedule import Schedule
from retrv_r1.train.start import around_backbone
from retrv_r1.train.teacher import teach
from retrv_r1.train.tiny import load_preprocessing
from retrv_r1.train.training_data import TrainingData
from retrv_r1.train.vision_rows import RowBank

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Setup:
    """What a stage is built from; models are loaded when they are first used.

    Attributes:
        config: the stage's configuration file.
        machine: device, dtype and workers of the training run.
        data: the data sets.
    """

    config: RunConfig
    machine: Machine
    data: TrainingData

    @property
    def train(self) -> Corpus:
        """The split for training."""
        return self.data.train

    @property
    def val(self) -> Corpus:
        """The split for validation."""
        return self.data.val

    @property
    def named(self) -> NamedPictures:
        """The named training pictures."""
        return self.data.named

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
        """The reranker of an earlier stage, or one around a backbone, ready to be trained."""
        if "model" not in self.config.init and "backbone" in self.config.init:
            model, processor = around_backbone(self.result("backbone"), self.config.side)
            model.config.prompts |= self.config.prompts
            self.machine.prepare(model)
            return model, processor
        path = self.result("model")
        model = RetrvR1ForConditionalGeneration.from_pretrained(path)
        model.config.prompts |= self.config.prompts
        self.machine.prepare(model)
        return model, RetrvR1Processor.from_pretrained(path, model.config)

    @cached_property
    def first_stage(self) -> RetrvEmbedder | None:
        """The first stage that goes into the result; None if the lists are another's."""
        return None if self.data.lists and "embed" not in self.config.init else self.embedder

    @cached_property
    def embedder(self) -> RetrvEmbedder:
        """The first stage, which is not trained further."""
        embedder = RetrvEmbedder.from_pretrained(self.result("embed"), dtype=torch.float32)
        self.machine.prepare(embedder)
        return embedder

    @property
    def cache(self) -> Path:
        """Folder of what the stages of a recipe compute alike in one dtype, beside their runs."""
        return self.config.out.parent / "cache" / str(self.machine.dtype).removeprefix("torch.")

    def naming(self, width: int) -> Naming:
        """A softmax over the names of the pictures, on the machine's device."""
        names = self.named.names
        taught = teach(names, self.cache) if self.config.teacher else torch.zeros(len(names), 1)
        return Naming(taught, width).to(self.machine.device)

    @cached_property
    def entries(self) -> EntryEmbedder:
        """The first stage for entries of the training split."""
        return self._entries(self.train)

    def ranking(self, corpus: Corpus) -> Mapping[str, Ranking]:
        """How close a split's candidates are: by first-stage vectors, or by the given lists.

        Texts are cut to the stage's ``max_text`` tokens for the first stage.
        """
        if self.data.lists:
            return {name: Retrieved(cell) for name, cell in corpus.cells.items()}
        return self.vectors(corpus)

    def vectors(self, corpus: Corpus) -> dict[str, Vectors]:
        """First-stage vectors of a split; texts are cut to the stage's ``max_text`` tokens."""
        entries = self.entries if corpus is self.train else self._entries(corpus)
        return embed_cells(entries, corpus, self.cache)

    def _entries(self, corpus: Corpus) -> EntryEmbedder:
        tokenizer, images = load_preprocessing(self.result("embed"))
        return EntryEmbedder(self.embedder, tokenizer, images, corpus, self.config.stage.max_text)

    def rows(self, visual: nn.Module, images: Qwen2VLImageProcessorPil, views: int) -> RowBank:
        """Rows of all training pictures by a frozen tower, computed once for all stages."""
        return self.data.rows(visual, images, views, self.config.loop.seed, self.cache)

    def row_source(
        self, visual: nn.Module, images: Qwen2VLImageProcessorPil, views: int
    ) -> RowBank | LiveRows:
        """The same, or with ``views`` 0 rows that are computed at every step."""
        if not views:
            return LiveRows(visual, images, self.data.pictures)
        return self.rows(visual, images, views)


@dataclass(frozen=True)
class RunStats:
    """What a finished run did.

    Attributes:
        steps: optimizer steps since the run was started or resumed.
        samples: pictures or lists of these steps.
        seconds: seconds of training in all, and of its parts. A GPU works asynchronously: its time
            shows where the host waits for it, mostly in the forward pass, which reads the losses.
    """

    steps: int
    samples: int
    seconds: dict[str, float]


class Stage(ABC):
    """One training stage.

    A stage is a subclass in a file of its own, and a line in ``retrv_r1.train.stages``. Its
    constructor takes a :class:`Setup` and makes ``model`` and ``processor``.

    Attributes:
        Config: dataclass of the stage's options, the section ``stage`` of its YAML file.
        model: the model that is trained.
        rank: number of this process among those that train the model.
        processor: preprocessing that is saved beside the model.
        schedule: schedule by time if the run has a time limit; None for one by steps.
        stats: steps, samples and seconds of the run, once it is finished.
    """

    Config: ClassVar[type]
    config: Any
    model: PreTrainedModel
    processor: Any
    rank = 0
    schedule: Schedule | None = None
    stats: RunStats | None = None

    def __init__(self, setup: Setup) -> None:
        self.name = setup.config.name
        self.config, self.seed = setup.config.stage, setup.config.loop.seed
        self._auxiliary: list[str] = []

    def add_auxiliary(self, name: str, module: M) -> M:
        """Makes a module part of the model while it trains.

        Optimizer and checkpoints include it; the result does not.
        """
        self.model.add_module(name, module)
        self._auxiliary.append(name)
        return module

    @abstractmethod
    def batch(self, step: int) -> dict[str, Any]:
        """The batch of a step, on the CPU: a function of the step and its position alone.

        It must touch neither the model nor a GPU, because other processes call it.
        """

    def draws(self, step: int) -> tuple[np.random.Generator, np.random.Generator]:
        """Random numbers for what a step is about, and for its batch.

        The former are the same in all processes, so that their steps take equally long.
        """
        about = np.random.default_rng([self.seed, step])
        return about, np.random.default_rng([self.seed, step, 1 + self.rank])

    def position(self, step: int) -> float:
        """Position of a step in the schedule, in steps of the configuration."""
        return step if self.schedule is None else self.schedule.position

    @abstractmethod
    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch on the model's device, and metrics to log.

        The metric ``tokens`` counts rows and patches processed, ``samples`` pictures or lists.
        """

    def validate(self) -> dict[str, float]:
        """Metrics on held-out data, logged at every checkpoint; none by default."""
        return {}

    def save(self, out: Path) -> None:
        """Writes the complete result, which the next stage can load."""
        while self._auxiliary:
            delattr(self.model, self._auxiliary.pop())
        self.model.save_pretrained(out)
        self.processor.save_pretrained(out)


def build_stage(
    config: RunConfig, machine: Machine | None = None, data: TrainingData | None = None
) -> Stage:
    """Builds a stage, for a CPU by default; this seeds PyTorch and sets its threads.

    Args:
        data: the config's data sets, if another stage has loaded them.
    """
    if config.loop.threads:
        torch.set_num_threads(config.loop.threads)
    set_seed(config.loop.seed)
    machine = machine or Machine()
    data = data or TrainingData(config.data, machine.device, config.lists, config.side)
    with no_collection():
        return stage_class(config.name)(Setup(config, machine, data))
