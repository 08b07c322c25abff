"""Training: ``embed`` → (``pretrain``, tiny only) → ``align`` → ``sft``.

Each stage reads a YAML file, starts from another stage's result, and writes ``OUT/final``.
"""

from __future__ import annotations

from pathlib import Path

STAGES = ("embed", "pretrain", "align", "sft")


def run(
    stage: str,
    config: Path,
    out: Path | None = None,
    resume: bool = True,
    *,
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
        device, dtype, workers: see :meth:`retrv_r1.train.machine.Machine.of`.
        minutes: time in which all is done, loading and saving included, whatever steps the
            config plans; its schedule is stretched or pressed into that time.
    """
    from retrv_r1.train.build import build_stage, read_config
    from retrv_r1.train.loop import fit
    from retrv_r1.train.machine import Machine
    from retrv_r1.train.record import write_record
    from retrv_r1.train.schedule import Schedule

    settings = read_config(stage, Path(config))
    machine = Machine.of(device, dtype, workers)
    schedule = Schedule(settings.loop.steps, minutes * 60) if minutes is not None else None
    target = Path(out) if out else settings.out
    built = build_stage(settings, machine)
    built.schedule = schedule
    final = fit(built, settings.loop, target, resume, machine)
    write_record(settings, target, built, machine)
    return final
