"""Training: ``embed`` → (``pretrain``, tiny only) → ``align`` → ``sft``.

Each stage reads a YAML file, starts from another stage's result, and writes ``OUT/final``.
"""

from __future__ import annotations

from pathlib import Path

STAGES = ("embed", "pretrain", "align", "sft")


def run(stage: str, config: Path, out: Path | None = None, resume: bool = True) -> Path:
    """Trains one stage; returns the directory of the result.

    Args:
        stage: one of :data:`STAGES`.
        config: YAML file of that stage.
        out: where checkpoints, curves and the result go; the config's ``out`` by default.
        resume: go on from the newest checkpoint in ``out``.
    """
    from retrv_r1.train.build import build_stage, read_config
    from retrv_r1.train.loop import fit
    from retrv_r1.train.record import write_record

    settings = read_config(stage, Path(config))
    target = Path(out) if out else settings.out
    built = build_stage(settings)
    final = fit(built, settings.loop, target, resume)
    write_record(settings, target)
    return final
