"""Puts a trained checkpoint together: the last stage's result, calibrated, with its records."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from retrv_r1.train import STAGES


def ship(runs: Path, out: Path, dataset: Path) -> None:
    """Puts a checkpoint together and calibrates it.

    Args:
        runs: directory with a run per stage.
        dataset: the data set whose validation lists the score temperature is fitted on.
    """
    from retrv_r1.eval.calibration import calibrate

    assemble(runs, out)
    print(calibrate(out, dataset))


def assemble(runs: Path, out: Path, last: str = list(STAGES)[-1]) -> None:
    """Copies a stage's result to ``out``, in half precision, with every run's curves and record.

    Args:
        runs: directory with a run per stage.
        last: the stage; ``pretrain`` gives a checkpoint that ranks too.
    """
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(runs / last / "final", out)
    if not (out / "embedder").exists():
        shutil.copytree(runs / "embed" / "final", out / "embedder")
    for weights in (out / "model.safetensors", out / "embedder" / "model.safetensors"):
        _halve(weights)
    records = out / "training"
    records.mkdir()
    for run in sorted(runs.iterdir()):
        shutil.copy(run / "record.json", records / f"{run.name}.json")
        for kind in ("jsonl", "png"):
            (curves,) = run.glob(f"*.{kind}")
            shutil.copy(curves, records / f"{run.name}.{kind}")


def _halve(weights: Path) -> None:
    """Half precision on disk keeps the whole under 25 MB; the config has it read as float32."""
    halved = {name: tensor.half() for name, tensor in load_file(weights).items()}
    save_file(halved, weights, metadata={"format": "pt"})


if __name__ == "__main__":
    ship(*map(Path, sys.argv[1:4]))
