"""Puts a trained checkpoint together: the last stage's result, calibrated, with its records."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from retrv_r1.train import STAGES


def ship(runs: Path, out: Path, dataset: Path) -> None:
    """Copies ``runs/sft/final`` to ``out`` with every stage's curves and record, and calibrates.

    Args:
        runs: directory with a run per stage.
        dataset: the data set whose validation lists the score temperature is fitted on.
    """
    from retrv_r1.eval.calibration import calibrate

    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(runs / STAGES[-1] / "final", out)
    records = out / "training"
    records.mkdir()
    for stage in STAGES:
        shutil.copy(runs / stage / "record.json", records / f"{stage}.json")
        for kind in ("jsonl", "png"):
            shutil.copy(runs / stage / f"{stage}.{kind}", records)
    print(calibrate(out, dataset))


if __name__ == "__main__":
    ship(*map(Path, sys.argv[1:4]))
