"""The training loop: transformers' Trainer, driven by a stage.

A stage says what a step's batch is (a function of the step number alone, so that a resumed run
sees exactly the batches it would have seen) and what its loss is; everything else is the
Trainer's: optimiser, schedule, clipping, checkpoints, resuming.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import get_last_checkpoint

from retrv_r1.train.machine import Machine, MachineError
from retrv_r1.train.schedule import ByTheClock, Schedule, cosine
from retrv_r1.train.tensors import to_arrays, to_device, to_tensors

_ENDLESS = 10**9


@dataclass(frozen=True)
class LoopConfig:
    """What the Trainer needs to know.

    Args:
        steps: optimiser steps in all.
        learning_rate: peak, reached after ``warmup`` steps, then cosine to a twentieth.
        rates: what learning rates are multiplied by, by a part of parameters' names: ``{visual:
            0.25}`` for a slow tower. The first that fits counts; one that fits none is an error.
        weight_decay, clip_norm, betas: AdamW's.
        save_every, log_every: in steps.
        threads: CPU threads, 0 for torch's own choice.
    """

    steps: int
    learning_rate: float = 1e-3
    rates: dict[str, float] = field(default_factory=dict)
    warmup: int = 100
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    beta2: float = 0.98
    save_every: int = 500
    log_every: int = 20
    threads: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Spent:
    """What a finished run did.

    Attributes:
        steps, samples: made in this process; a sample is a pair or a list.
        seconds: of training in all, and of its parts. A GPU works behind: its time shows where
            the host waits for it, mostly in the forward pass, which reads the losses.
    """

    steps: int
    samples: int
    seconds: dict[str, float]


class Stage(ABC):
    """One training stage.

    Attributes:
        schedule: by time, if the run has a limit; by steps if None.
        spent: what the run took, once it is finished.
    """

    name: str
    model: PreTrainedModel
    schedule: Schedule | None = None
    spent: Spent | None = None

    @abstractmethod
    def batch(self, step: int) -> dict[str, Any]:
        """The batch of a step, on the CPU; the same for the same step and place, always.

        It must not touch the model or a GPU: other processes call it.
        """

    def place(self, step: int) -> float:
        """Where a step stands in the schedule, in the config's steps."""
        return step if self.schedule is None else self.schedule.place

    @abstractmethod
    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch on the model's device, and what to log.

        ``tokens`` counts rows and patches processed, ``samples`` pairs or lists.
        """

    @abstractmethod
    def save(self, out: Path) -> None:
        """Writes the complete result, loadable by the next stage."""

    def validate(self) -> dict[str, float]:
        """Metrics on held-out data, logged at every checkpoint; none by default."""
        return {}


class _Steps(Dataset):
    """Step numbers as a data set of ready batches."""

    def __init__(self, stage: Stage, steps: int, workers: int) -> None:
        self.stage, self.steps, self.workers = stage, steps, workers

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        batch = self.stage.batch(step)
        return to_arrays(batch) if self.workers else batch


def _only(batches: list[dict[str, Any]]) -> dict[str, Any]:
    return batches[0]


def _start_worker(_: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a forked tokenizer cannot use its threads


class _StageTrainer(Trainer):
    """Trainer whose loss is the stage's and whose batches come in order, ready-made."""

    stage: Stage
    rates: dict[str, float]
    machine: Machine
    recorder: Recorder
    warmup: int

    def get_train_dataloader(self) -> DataLoader:
        """Batches in order, made by forked processes: a stage is too large to be sent to them."""
        options: dict[str, Any] = {}
        if workers := self.machine.workers:
            if "fork" not in multiprocessing.get_all_start_methods():
                raise MachineError("this system cannot fork processes: train with 0 workers")
            options = {
                "num_workers": workers,
                "multiprocessing_context": "fork",
                "worker_init_fn": _start_worker,
                # Few batches made ahead: they are behind a schedule by time.
                "prefetch_factor": 1,
                # A generator of its own: the loader draws a seed, which no batch depends on.
                "generator": torch.Generator(),
            }
        return DataLoader(self.train_dataset, collate_fn=_only, **options)

    def get_batch_samples(self, *args: Any) -> Any:
        with self.recorder.timed("waiting for batches"):
            return super().get_batch_samples(*args)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return to_device(to_tensors(inputs) if self.machine.workers else inputs, self.args.device)

    def training_step(self, *args: Any, **options: Any) -> Tensor:
        with self.recorder.timed("forward and backward"):
            return super().training_step(*args, **options)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> Tensor:
        with self.recorder.timed("of these forward"):
            loss, metrics = self.stage.loss(inputs)
        self.recorder.add(metrics)
        return loss

    # Checkpoints hold the module's own names: save_pretrained renames a nested backbone's weights,
    # and the Trainer's resuming does not rename them back.
    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        target = Path(output_dir or self.args.output_dir)
        target.mkdir(parents=True, exist_ok=True)
        save_model(self.model, str(target / "model.safetensors"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_model(self.model, Path(resume_from_checkpoint) / "model.safetensors", strict=True)

    def create_optimizer(self, *args: Any) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*args)
        names = {id(p): name for name, p in self.stage.model.named_parameters()}
        for part in self.rates:
            if not any(part in name for name in names.values()):
                raise ValueError(f"loop.rates: no parameter's name holds {part!r}")
        for group in list(optimizer.param_groups):
            by_rate: dict[float, list[nn.Parameter]] = {1.0: []}
            for parameter in group["params"]:
                fitting = (r for part, r in self.rates.items() if part in names[id(parameter)])
                by_rate.setdefault(next(fitting, 1.0), []).append(parameter)
            group["params"] = by_rate.pop(1.0)
            for rate, parameters in by_rate.items():
                lr = group["lr"] * rate
                optimizer.add_param_group({**group, "params": parameters, "lr": lr})
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        schedule = self.stage.schedule
        if schedule is None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer,
            lambda _: cosine(schedule.place, schedule.steps, self.warmup),
        )
        return self.lr_scheduler


class Recorder(ProgressCallback):
    """The progress bar, and a stage's averaged metrics as JSON lines."""

    def __init__(self, path: Path, stage: Stage) -> None:
        super().__init__()
        self.path, self.stage = path, stage
        self.sums: dict[str, list[float]] = {}
        self.since = time.time()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.steps = self.samples = 0

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Counts what is done inside as seconds of a part of training."""
        started = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - started

    def add(self, metrics: dict[str, float]) -> None:
        """Takes one step's metrics."""
        self.steps += 1
        self.samples += int(metrics.pop("samples", 0))
        for name, value in metrics.items():
            self.sums.setdefault(name, []).append(value)

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Opens the bar; nobody knows how many steps there is time for."""
        super().on_train_begin(args, state, control, **options)
        if self.training_bar is not None and self.stage.schedule is not None:
            self.training_bar.total = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Writes the averages since the last log, and shows loss and speed beside the bar."""
        if not logs or "loss" not in logs:
            return
        elapsed, self.since = time.time() - self.since, time.time()
        tokens = sum(self.sums.pop("tokens", []))
        row = {"step": state.global_step, "loss": logs["loss"], "lr": logs.get("learning_rate")}
        row |= {name: sum(v) / len(v) for name, v in self.sums.items()}
        row |= {"tokens_per_s": tokens / elapsed, "seconds": elapsed}
        self.sums = {}
        if self.training_bar is not None:
            self.training_bar.set_postfix(
                loss=f"{row['loss']:.3f}", tokens_per_s=int(tokens / elapsed)
            )
        self._write(row)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Validates at every checkpoint, unless that takes too much of a limited time."""
        schedule = self.stage.schedule
        if schedule is None or not schedule.rarely or schedule.ended:
            self.validate(state.global_step)

    def validate(self, step: int) -> None:
        """Validates and writes what came of it; its time does not count as training."""
        started = time.time()
        self.stage.model.eval()
        with torch.no_grad(), self.timed("validation"):
            metrics = self.stage.validate()
        self.stage.model.train()
        if metrics:
            self._write({"step": step, **metrics})
        self.since += time.time() - started

    def _write(self, row: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def draw_curves(path: Path, title: str) -> Path:
    """Draws a curve file's metrics over steps as PNG beside it.

    In sixteen colours it takes a quarter of the bytes: checkpoints carry their curves.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    skip = {"step", "lr", "seconds"}
    names = sorted({name for row in rows for name in row} - skip)
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.6 * columns, 2.6 * lines), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        axis.set_visible(True)
        axis.plot(*zip(*points, strict=True), linewidth=1, marker="." if len(points) < 20 else "")
        axis.set_title(name, fontsize=9)
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    target = path.with_suffix(".png")
    drawn = BytesIO()
    figure.savefig(drawn, dpi=110)
    plt.close(figure)
    few = Image.open(drawn).convert("RGB").quantize(16, dither=Image.Dither.NONE)
    few.save(target, optimize=True, dpi=(110, 110))
    return target


def keep_freed_memory() -> None:
    """Makes glibc keep what is freed instead of giving it back to the system after every step.

    A step's large tensors otherwise come as fresh, zeroed pages each time: 60-90 % of the time of
    a CPU step of the sft stage went into the kernel, 0 % with this (docs/LOG.md). Elsewhere than
    on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8
    for option, value in (
        (mmap_max, 0),
        (trim_threshold, 2**31 - 1),
        (top_pad, 2**28),
        (arena_max, 1),
    ):
        mallopt(option, value)


def fit(
    stage: Stage, config: LoopConfig, out: Path, resume: bool, machine: Machine | None = None
) -> Path:
    """Trains a stage to the end and writes its result to ``out/final``.

    Args:
        stage: with a :class:`Schedule` it ends by the clock, otherwise after the config's steps.
        resume: go on from the newest checkpoint under ``out`` if there is one. Its steps are not
            repeated; a schedule by time starts anew.
        machine: that the stage was built for; a CPU by default.
    """
    machine = machine or Machine()
    if config.threads:
        torch.set_num_threads(config.threads)
    if machine.device.type == "cpu":
        keep_freed_memory()
    out.mkdir(parents=True, exist_ok=True)
    last = get_last_checkpoint(str(out)) if resume else None
    curves = out / f"{stage.name}.jsonl"
    _trim_curves(curves, _step_of(last))
    recorder = Recorder(curves, stage)
    steps = config.steps if stage.schedule is None else _ENDLESS
    trainer = _StageTrainer(
        model=stage.model,
        args=_arguments(config, out, steps, machine, timed=stage.schedule is not None),
        train_dataset=_Steps(stage, steps, machine.workers),
    )
    trainer.pop_callback(ProgressCallback)
    trainer.add_callback(recorder)
    if stage.schedule is not None:
        trainer.add_callback(ByTheClock(stage.schedule, recorder.validate))
    trainer.stage, trainer.recorder, trainer.rates = stage, recorder, config.rates
    trainer.machine, trainer.warmup = machine, config.warmup
    with recorder.timed("all"):
        trainer.train(resume_from_checkpoint=last)
    stage.spent = Spent(recorder.steps, recorder.samples, dict(recorder.seconds))
    stage.model.eval()
    stage.save(out / "final")
    draw_curves(curves, f"{stage.name}: {trainer.state.global_step} steps")
    return out / "final"


def _arguments(
    config: LoopConfig, out: Path, steps: int, machine: Machine, *, timed: bool
) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=1,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.05},
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        adam_beta2=config.beta2,
        max_grad_norm=config.clip_norm,
        save_strategy="no" if timed else "steps",
        save_steps=config.save_every,
        save_total_limit=2,
        logging_steps=config.log_every,
        seed=config.seed,
        use_cpu=machine.device.type == "cpu",
        remove_unused_columns=False,
        report_to="none",
        label_names=[],
    )
    # One GPU: with several the Trainer would cut batches up, which dataclasses do not allow.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def _step_of(checkpoint: str | None) -> int:
    return int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0


def _trim_curves(path: Path, step: int) -> None:
    """Drops the lines written after the checkpoint that a run resumes from."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    path.write_text("".join(kept), encoding="utf-8")
