"""Evaluates a model on a data set, from arguments to files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import torch

from retrv_r1.devices import check_weights, device_of, dtype_of
from retrv_r1.eval.cells import choose
from retrv_r1.eval.chart import draw
from retrv_r1.eval.metrics import require_metrics
from retrv_r1.eval.models import Models
from retrv_r1.eval.plan import read_cells
from retrv_r1.eval.ranking import CellRun, CellRunner
from retrv_r1.eval.report import Report, build
from retrv_r1.eval.settings import EvalOptions, EvalSettings
from retrv_r1.eval.trec import write_runs
from retrv_r1.model.checkpoint import saved_dtype
from retrv_r1.model.first_stage import local_checkpoint


def run(
    dataset: str | Path,
    *,
    model: str | Path = "tiny",
    k: Sequence[int] = (10, 50),
    split: str = "all",
    out: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **options: Unpack[EvalOptions],
) -> Report:
    """Evaluates both stages of a checkpoint on a directory in M-BEIR's layout.

    With ``out``, each query's outcome is saved when it is known: a killed run resumes, and a
    finished one is only read. Saved outcomes are reused for the same model, data, settings and
    version of this package; changes of code within a version are not noticed.

    Args:
        dataset: directory of the data set.
        model: ``"tiny"`` (shipped), a directory, or a hub id; it must have a first stage unless
            ``candidates`` are given.
        k: candidate counts; for each, that many of the first stage's best are reranked.
        split: ``style``, ``composition`` or ``unseen`` of the pictograph set, ``test``, ``val``,
            or ``all`` for every test cell.
        out: folder for ``report.json``, ``report.md``, ``chart.png``, ``runs/`` and ``outcomes/``.
        device, dtype: see :meth:`retrv_r1.Reranker.from_pretrained`.
        options: fields of :class:`EvalSettings`.
    Raises:
        EvalError: nothing to evaluate, an invalid option, an invalid ranking, or files that cannot
            be written.
        CheckpointError: no such model, or it has no first stage.
        DeviceError: no such device, or it does not support an option.
        MBEIRError: the directory is not in M-BEIR's layout.
    """
    require_metrics()
    place = device_of(device)
    check_weights(options.get("weights", "model"), place)
    checkpoint = local_checkpoint(model, first_stage=options.get("candidates") is None)
    weights_dtype = dtype_of(dtype, place) or saved_dtype(checkpoint)
    settings = EvalSettings(
        k=tuple(sorted(set(k))),
        device=str(place),
        dtype=str(weights_dtype).removeprefix("torch."),
        **options,
    )
    root = Path(dataset)
    folder = None if out is None else Path(out)
    runner = CellRunner(Models(model, settings), settings, folder)
    plan = read_cells(root, choose(root, split), settings)
    runs = [runner.run(work) for work in plan.works]
    report = build(str(dataset), str(model), settings, runs)
    if folder is not None:
        _write(report, runs, folder)
    return report


def _write(report: Report, runs: Sequence[CellRun], folder: Path) -> None:
    """Writes report, chart and run files."""
    if draw(report, folder / "chart.png"):
        report["chart"] = "chart.png"
    else:
        report["notes"].append("No chart: matplotlib is not installed (pip install matplotlib).")
    (folder / "report.json").write_text(report.to_json() + "\n", encoding="utf-8")
    (folder / "report.md").write_text(report.to_markdown(), encoding="utf-8")
    for cell in runs:
        write_runs(cell, folder / "runs", report["settings"]["run_format"])
