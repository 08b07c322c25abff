"""The training loop: transformers' Trainer, driven by a stage.

A stage gives the batch of a step, a function of the step number alone, so that a resumed run sees
exactly the batches that it would have seen; and the loss of a batch. Everything else is the
Trainer's: optimizer, schedule, clipping, checkpoints, resuming.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from retrv_r1.files import saving
from retrv_r1.train.checkpoints import newest_checkpoint
from retrv_r1.train.config import ConfigError, LoopConfig
from retrv_r1.train.curves import Recorder, draw_curves, trim_curves
from retrv_r1.train.machine import Machine, MachineError, keep_freed_memory
from retrv_r1.train.peers import Peers
from retrv_r1.train.schedule import ScheduleCallback, cosine
from retrv_r1.train.stage import RunStats, Stage
from retrv_r1.train.tensors import to_arrays, to_device, to_tensors

_ENDLESS = 10**9


class _Steps(Dataset):
    """Data set whose items are the batches of a stage, by step number."""

    def __init__(self, stage: Stage, steps: int, workers: int) -> None:
        self.stage, self.steps, self.workers = stage, steps, workers

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        batch = self.stage.batch(step)
        return to_arrays(batch) if self.workers else batch


def _unwrap(batches: list[dict[str, Any]]) -> dict[str, Any]:
    return batches[0]


def _start_worker(_: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a forked tokenizer cannot use its threads


class _StageTrainer(Trainer):
    """Trainer that takes loss and batches from a stage, the batches in order."""

    stage: Stage
    rates: dict[str, float]
    machine: Machine
    peers: Peers
    recorder: Recorder
    warmup: int

    def get_train_dataloader(self) -> DataLoader:
        """Batches in order, made by forked processes: a stage is too large to be pickled."""
        options: dict[str, Any] = {}
        if workers := self.machine.workers:
            if "fork" not in multiprocessing.get_all_start_methods():
                raise MachineError("this system cannot fork processes: train with --workers 0")
            options = {
                "num_workers": workers,
                "multiprocessing_context": "fork",
                "worker_init_fn": _start_worker,
                # Few batches ahead: each was made for an earlier position of a schedule by time.
                "prefetch_factor": 1,
                # The loader draws a seed, on which no batch depends; the global one stays as it is.
                "generator": torch.Generator(),
            }
        return DataLoader(self.train_dataset, collate_fn=_unwrap, **options)

    def get_batch_samples(self, *args: Any) -> Any:
        with self.recorder.timed("waiting for batches"):
            return super().get_batch_samples(*args)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return to_device(to_tensors(inputs) if self.machine.workers else inputs, self.args.device)

    def training_step(self, *args: Any, **options: Any) -> Tensor:
        with self.recorder.timed("forward and backward"):
            loss = super().training_step(*args, **options)
        with self.recorder.timed("averaging gradients"):
            self.peers.average_gradients()
        return loss

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> Tensor:
        with self.recorder.timed("of these forward"):
            loss, metrics = self.stage.loss(inputs)
        self.recorder.add(metrics)
        return loss

    # Checkpoints keep the module's own names: save_pretrained renames a nested backbone's weights,
    # and the Trainer does not rename them back when it resumes.
    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        target = Path(output_dir or self.args.output_dir)
        target.mkdir(parents=True, exist_ok=True)
        save_model(self.model, str(target / "model.safetensors"))

    def _save_checkpoint(self, *args: Any) -> None:
        with saving(f"checkpoint-{self.state.global_step} in {self.args.output_dir}"):
            super()._save_checkpoint(*args)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_model(self.model, Path(resume_from_checkpoint) / "model.safetensors", strict=True)

    def create_optimizer(self, *args: Any) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*args)
        names = {id(p): name for name, p in self.stage.model.named_parameters()}
        for part in self.rates:
            if not any(part in name for name in names.values()):
                raise ConfigError(f"loop.rates: no parameter's name contains {part!r}; correct it")
        for group in list(optimizer.param_groups):
            by_rate: dict[float, list[nn.Parameter]] = {1.0: []}
            for parameter in group["params"]:
                matching = (r for part, r in self.rates.items() if part in names[id(parameter)])
                by_rate.setdefault(next(matching, 1.0), []).append(parameter)
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
            lambda _: cosine(schedule.position, schedule.steps, self.warmup),
        )
        return self.lr_scheduler


def fit(
    stage: Stage, config: LoopConfig, out: Path, resume: bool, machine: Machine | None = None
) -> Path:
    """Trains a stage to the end and writes its result to ``out/final``.

    Args:
        stage: stage to train; its schedule by time ends the run, otherwise the config's steps do.
        resume: continue from the newest checkpoint in ``out`` if there is one, after its step; a
            schedule by time starts again.
        machine: machine that the stage was built for; a CPU by default.
    """
    machine = machine or Machine()
    if config.threads:
        torch.set_num_threads(config.threads)
    if machine.device.type == "cpu":
        keep_freed_memory()
    out.mkdir(parents=True, exist_ok=True)
    last, step = newest_checkpoint(out) if resume else (None, 0)
    curves = out / f"{stage.name}.jsonl"
    trim_curves(curves, step)
    recorder = Recorder(curves, stage)
    steps = config.steps if stage.schedule is None else _ENDLESS
    with _together(config, stage, machine) as peers:
        stage.rank, recorder.processes = peers.rank, peers.count
        trainer = _StageTrainer(
            model=stage.model,
            args=_arguments(config, out, steps, machine, saves=not (stage.schedule or peers.rank)),
            train_dataset=_Steps(stage, steps, machine.workers),
        )
        trainer.pop_callback(ProgressCallback)
        if not peers.rank:
            trainer.add_callback(recorder)
        if stage.schedule is not None:
            trainer.add_callback(ScheduleCallback(stage.schedule, recorder.validate))
        trainer.stage, trainer.recorder, trainer.rates = stage, recorder, config.rates
        trainer.machine, trainer.warmup, trainer.peers = machine, config.warmup, peers
        with recorder.timed("all"):
            trainer.train(resume_from_checkpoint=str(last) if last else None)
    stage.stats = RunStats(recorder.steps, recorder.samples, dict(recorder.seconds))
    stage.model.eval()
    with saving(f"the result in {out / 'final'}"):
        stage.save(out / "final")
    draw_curves(curves, f"{stage.name}: {trainer.state.global_step} steps")
    return out / "final"


@contextmanager
def _together(config: LoopConfig, stage: Stage, machine: Machine) -> Iterator[Peers]:
    """The processes that train: the clock of a time limit is one's own, and so is a GPU."""
    alone = stage.schedule is not None or machine.device.type != "cpu"
    count = 1 if alone else config.processes
    threads = torch.get_num_threads()
    if count > 1:
        torch.set_num_threads(1)  # a forked process cannot use the threads of its parent
    try:
        with Peers(stage.model, count) as peers:
            yield peers
    finally:
        torch.set_num_threads(threads)


def optimization(config: LoopConfig) -> dict[str, Any]:
    """The arguments of transformers' Trainer that say how weights are changed."""
    return dict(
        optim="adamw_torch_fused",
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.05},
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        adam_beta2=config.beta2,
        max_grad_norm=config.clip_norm,
    )


def _arguments(
    config: LoopConfig, out: Path, steps: int, machine: Machine, *, saves: bool
) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=1,
        **optimization(config),
        save_strategy="steps" if saves else "no",
        save_steps=config.save_every,
        save_total_limit=2,
        logging_steps=config.log_every,
        seed=config.seed,
        gradient_checkpointing=config.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        use_cpu=machine.device.type == "cpu",
        remove_unused_columns=False,
        report_to="none",
        label_names=[],
    )
    # One GPU: with several the Trainer would split batches, which cannot be done with dataclasses.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments
