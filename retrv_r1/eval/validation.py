"""Ranks validation lists, to fit what a checkpoint's config holds, and writes that there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retrv_r1.eval.cells import EvalError, choose
from retrv_r1.eval.models import Models
from retrv_r1.eval.plan import CellWork, read_cells
from retrv_r1.eval.ranking import CellRun, CellRunner
from retrv_r1.eval.settings import EvalSettings
from retrv_r1.files import write_whole
from retrv_r1.types import CheckpointError


def rank_validation(
    model_dir: str | Path, datasets: str | Path | Sequence[str | Path], **options: Any
) -> list[CellRun]:
    """Ranks the val splits of one or more data sets.

    Args:
        model_dir: directory of a checkpoint.
        datasets: directories in M-BEIR's layout with a val split.
        options: fields of :class:`EvalSettings`, with one ``k``, at most the reranker's window:
            there the scores of a list are one softmax.
    Raises:
        CheckpointError: no such directory, or no first stage in it.
        EvalError: no val split, or a longer list than a window.
    """
    folder, settings = Path(model_dir), EvalSettings(**options)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is not a checkpoint's directory: it has no config.json")
    models, (k,) = Models(folder, settings), settings.k
    if k > models.reranker.window:
        raise EvalError(f"k must be at most the window of {models.reranker.window}, got {k}")
    runner = CellRunner(models, settings, None)
    return [runner.run(work) for work in val_cells(datasets, settings)]


def val_cells(
    datasets: str | Path | Sequence[str | Path], settings: EvalSettings
) -> list[CellWork]:
    """The val cells of one or more data sets, checked.

    Raises:
        EvalError: a data set has no val split, or one that cannot be ranked.
    """
    roots = [datasets] if isinstance(datasets, str | Path) else datasets
    works: list[CellWork] = []
    for root in map(Path, roots):
        plan = read_cells(root, choose(root, "val"), settings, None)
        if plan.bad:
            raise EvalError(f"{plan.bad[0].name}: {plan.bad[0].error}")
        works += plan.works
    return works


def write_value(config: Path, name: str, value: float) -> None:
    """Sets a value of a JSON file, which is replaced in one step; a link to it stays."""
    values = json.loads(config.read_text(encoding="utf-8")) | {name: value}
    write_whole(config, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
