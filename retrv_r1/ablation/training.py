"""Trains variants: a stage that two of them share is trained once, and a killed run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from retrv_r1.ablation.variants import ORDER, Variant
from retrv_r1.train import train_stage
from retrv_r1.train.config import ConfigError, RunConfig, read_config
from retrv_r1.train.machine import Machine
from retrv_r1.train.training_data import TrainingData
from retrv_r1.types import RetrvError


@dataclass(frozen=True)
class Step:
    """A stage of a variant, with the folder that all variants share that train it alike."""

    config: RunConfig

    @property
    def final(self) -> Path:
        """Folder of the result."""
        return self.config.out / "final"


@dataclass(frozen=True)
class Recipe:
    """The stages of a folder of configurations, as variants change them.

    Args:
        configs: folder with a YAML file for each stage.
        work: folder of the stages' runs.
        machine: what is trained on.
        data: data sets in the place of the files' own; empty for those.
        start: checkpoint that the first stage starts from; None for the files' own.
        first_stage: first stage of the result, as in ``init.embed``; None for the files' own.
        steps: steps of every stage, for trials; None for the files' own.
    """

    configs: Path
    work: Path
    machine: Machine
    data: tuple[Path, ...] = ()
    start: Path | None = None
    first_stage: Path | None = None
    steps: int | None = None
    _loaded: dict[Any, TrainingData] = field(default_factory=dict)

    @property
    def stages(self) -> list[str]:
        """Names of the recipe's stages, in order.

        Raises:
            ConfigError: the folder has none.
        """
        found = [stage for stage in ORDER if (self.configs / f"{stage}.yaml").is_file()]
        if not found:
            raise ConfigError(f"{self.configs} has no {', '.join(f'{s}.yaml' for s in ORDER)}")
        return found

    def plan(self, variant: Variant, seed: int) -> list[Step]:
        """The stages of a variant. The first starts where the recipe's first does."""
        steps: list[Step] = []
        start: dict[str, Path] | None = None
        for stage in self.stages:
            config = self._changed(stage, variant, seed)
            if start is None:  # of the recipe's first stage, even if the variant leaves it out
                start = {k: v for k, v in config.init.items() if k in ("model", "backbone")}
                start = start if self.start is None else {"model": self.start}
            if stage in variant.without:
                continue
            kept = {k: v for k, v in config.init.items() if k not in ("model", "backbone")}
            if self.first_stage is not None:
                kept["embed"] = self.first_stage
            init = kept | (start if not steps else {"model": steps[-1].final})
            prompts = config.prompts | (dict(variant.prompts) if not steps else {})
            config = replace(config, init=init, prompts=prompts)
            steps.append(Step(replace(config, out=self.work / f"{stage}-{_key(config)}")))
        if not steps:
            raise ConfigError(f"{self.configs}: {variant.title!r} leaves no stage")
        return steps

    def _changed(self, stage: str, variant: Variant, seed: int) -> RunConfig:
        gpu = self.machine.device.type != "cpu"
        config = read_config(stage, self.configs / f"{stage}.yaml", gpu=gpu)
        known = asdict(config.stage)
        options = {k: v for k, v in variant.options.get(stage, {}).items() if k in known}
        loop = replace(config.loop, seed=seed)
        if self.steps is not None:
            loop = replace(loop, steps=self.steps, warmup=min(loop.warmup, self.steps // 4))
            if "steps" in known:
                options["steps"] = self.steps
        data = self.data or config.data
        return replace(config, loop=loop, stage=replace(config.stage, **options), data=data)

    def train(self, step: Step) -> Path:
        """Trains a stage unless it is finished; returns its result."""
        config = step.config
        if not (step.final / "config.json").is_file():
            about = config.data, config.lists, config.side
            if about not in self._loaded:
                data, lists, side = about
                self._loaded[about] = TrainingData(data, self.machine.device, lists, side)
            config.out.mkdir(parents=True, exist_ok=True)
            train_stage(config, self.machine, None, resume=True, data=self._loaded[about])
        return step.final


def distinct(plans: Sequence[Sequence[Step]]) -> list[Step]:
    """The stages of variants, each once, in an order in which they can be trained."""
    found = {step.config.out: step for steps in plans for step in steps}
    return sorted(found.values(), key=lambda step: ORDER.index(step.config.name))


def train_all(
    recipe: Recipe, plans: Sequence[Sequence[Step]], told: Callable[[int, int, str], None]
) -> dict[Path, str]:
    """Trains the stages of variants; returns why some could not be, by their folders.

    What fails costs those variants alone that need it.

    Args:
        told: function that is told the number of stages done, that of all, and what comes next.
    """
    steps, failed = distinct(plans), dict[Path, str]()
    for number, step in enumerate(steps):
        told(number, len(steps), step.config.out.name)
        before = step.config.init.get("model")
        if before is not None and before.parent in failed:
            failed[step.config.out] = failed[before.parent]
            continue
        try:
            recipe.train(step)
        except (RetrvError, FloatingPointError) as error:
            failed[step.config.out] = f"{step.config.name}: {error}"
    told(len(steps), len(steps), "")
    return failed


def _key(config: RunConfig) -> str:
    """A hash of all that decides a stage's result; earlier stages are in their folders' names."""
    about = asdict(config)
    for name in ("source", "out"):
        del about[name]
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:12]
