"""Training: ``embed`` → ``words`` → (``read``, tiny only) → ``align`` → ``lists`` → ``sft`` →
``grpo``.

Each stage reads a YAML file, starts from another stage's result, and writes ``OUT/final``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from retrv_r1.train.stages import STAGES

if TYPE_CHECKING:
    from retrv_r1.train.config import RunConfig
    from retrv_r1.train.machine import Machine
    from retrv_r1.train.schedule import Schedule
    from retrv_r1.train.training_data import TrainingData

__all__ = ["STAGES", "run", "train_stage"]


def run(
    stage: str,
    config: Path,
    out: Path | None = None,
    resume: bool = True,
    *,
    data: Sequence[Path] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    workers: int | None = None,
    minutes: float | None = None,
) -> Path:
    """Trains one stage; returns the folder of the result.

    Args:
        stage: name of the stage, one of :data:`STAGES`.
        config: YAML file of the stage.
        out: folder of checkpoints, curves and the result; the config's ``out`` by default.
        resume: continue from the newest checkpoint in ``out``.
        data: folders or packs (``retrv-r1 data pack``) of the data sets; the config's by default.
        device, dtype, workers: options of :meth:`retrv_r1.train.machine.Machine.of`.
        minutes: time limit, loading and saving included. The schedule is stretched or compressed
            to fit, whatever number of steps the config plans.
    Raises:
        RetrvError: options, data or an earlier stage's result that cannot be used; the message
            says what to do.
        OSError: ``out`` cannot be written.
    """
    from retrv_r1.data.pack import data_folder
    from retrv_r1.train.config import read_config
    from retrv_r1.train.machine import Machine
    from retrv_r1.train.schedule import Schedule

    machine = Machine.of(device, dtype, workers)
    settings = read_config(stage, Path(config), gpu=machine.device.type != "cpu")
    schedule = Schedule(settings.loop.steps, minutes * 60) if minutes is not None else None
    target = Path(out) if out else settings.out
    target.mkdir(parents=True, exist_ok=True)  # before anything is loaded, if it cannot be made
    given = [Path(one) for one in data] if data else list(settings.data)
    folders = tuple(data_folder(one, target / f"data-{n}") for n, one in enumerate(given))
    settings = replace(settings, out=target, data=folders)
    return train_stage(settings, machine, schedule, resume=resume)


def train_stage(
    config: RunConfig,
    machine: Machine,
    schedule: Schedule | None,
    *,
    resume: bool,
    data: TrainingData | None = None,
) -> Path:
    """Trains a stage by steps or by a schedule, and writes its record.

    Args:
        data: the config's data sets, if another stage has loaded them.
    """
    from retrv_r1.train.loop import fit
    from retrv_r1.train.record import write_record
    from retrv_r1.train.stage import build_stage

    stage = build_stage(config, machine, data)
    stage.schedule = schedule
    if hasattr(stage, "fit"):  # a loop of its own
        final = stage.fit(config.loop, config.out, resume, machine)
    else:
        final = fit(stage, config.loop, config.out, resume, machine)
    write_record(config, stage, machine)
    return final
