"""Training: ``embed`` → (``pretrain``, tiny only) → ``align`` → ``sft``.

Each stage reads a YAML file, starts from another stage's result, and writes ``OUT/final``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retrv_r1.train.build import Settings
    from retrv_r1.train.machine import Machine
    from retrv_r1.train.schedule import Schedule

STAGES = ("embed", "pretrain", "align", "sft")


def run(
    stage: str,
    config: Path,
    out: Path | None = None,
    resume: bool = True,
    *,
    data: Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    workers: int | None = None,
    minutes: float | None = None,
) -> Path:
    """Trains one stage; returns the directory of the result.

    Args:
        stage: one of :data:`STAGES`.
        config: YAML file of that stage.
        out: where checkpoints, curves and the result go; the config's ``out`` by default.
        resume: go on from the newest checkpoint in ``out``.
        data: folder or pack (``retrv-r1 data pack``) of the data set; the config's by default.
        device, dtype, workers: see :meth:`retrv_r1.train.machine.Machine.of`.
        minutes: time in which all is done, loading and saving included, whatever steps the
            config plans; its schedule is stretched or pressed into that time.
    """
    from retrv_r1.data.pack import data_folder
    from retrv_r1.train.build import read_config
    from retrv_r1.train.machine import Machine
    from retrv_r1.train.schedule import Schedule

    settings = read_config(stage, Path(config))
    schedule = Schedule(settings.loop.steps, minutes * 60) if minutes is not None else None
    target = Path(out) if out else settings.out
    source = data_folder(Path(data) if data else settings.data, target / "data")
    settings = replace(settings, out=target, data=source)
    return train_stage(settings, Machine.of(device, dtype, workers), schedule, resume=resume)


def train_stage(
    settings: Settings, machine: Machine, schedule: Schedule | None, *, resume: bool
) -> Path:
    """Trains a stage as its settings say, by steps or by the clock, and writes its record."""
    from retrv_r1.train.build import build_stage
    from retrv_r1.train.loop import fit
    from retrv_r1.train.record import write_record

    stage = build_stage(settings, machine)
    stage.schedule = schedule
    final = fit(stage, settings.loop, settings.out, resume, machine)
    write_record(settings, settings.out, stage, machine)
    return final
