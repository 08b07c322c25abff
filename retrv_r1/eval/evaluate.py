"""Evaluates a model on a data set, from arguments to files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Unpack

import torch

from retrv_engine import RequestTooLarge
from retrv_r1.data.mbeir import MBEIRError
from retrv_r1.devices import check_weights, device_of, dtype_of
from retrv_r1.eval.cells import EvalError, choose
from retrv_r1.eval.chart import draw
from retrv_r1.eval.metrics import require_metrics
from retrv_r1.eval.models import Models
from retrv_r1.eval.notes import remarks
from retrv_r1.eval.plan import BadCell, Plan, read_cells
from retrv_r1.eval.ranking import CellRunner
from retrv_r1.eval.report import Report, build
from retrv_r1.eval.result import CellResult, measure
from retrv_r1.eval.settings import EvalOptions, EvalSettings
from retrv_r1.eval.trec import remove_others, write_runs
from retrv_r1.files import write_whole
from retrv_r1.model.checkpoint import saved_dtype
from retrv_r1.model.first_stage import local_checkpoint
from retrv_r1.types import ItemError


def run(
    dataset: str | Path,
    *,
    model: str | Path = "tiny",
    k: Sequence[int] = (10, 50),
    split: str = "all",
    cells: Sequence[str] = (),
    out: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **options: Unpack[EvalOptions],
) -> Report:
    """Evaluates both stages of a checkpoint on a directory in M-BEIR's layout.

    All cells are read and checked before a model is loaded. One that cannot be evaluated is listed
    in the report's ``bad_cells``, and costs only itself.

    With ``out``, each query's outcome is saved when it is known: a killed run resumes, and a
    finished one is only read. Saved outcomes are reused for the same model, data, settings and
    version of this package; changes of code within a version are not noticed.

    Args:
        dataset: directory of the data set.
        model: ``"tiny"`` (shipped), a directory, or a hub id; it must have a first stage unless
            ``candidates`` are given.
        k: candidate counts; for each, that many of the first stage's best are reranked.
        split: ``test`` or ``val``; ``style``, ``composition`` or ``unseen`` for a part of the
            pictograph set's test cells; ``hands``, ``concepts``, ``terms`` or ``detail`` for one of
            the icon corpus's; ``all`` for every test cell.
        cells: names of cells, such as ``cirr_task7``; all of the split if empty.
        out: folder for ``report.json``, ``report.md``, ``chart.png``, ``runs/``, ``outcomes/``,
            and ``vectors/`` of the pools. Run files of an earlier report are removed.
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
    folder = None if out is None else _writable(Path(out))
    place = device_of(device)
    check_weights(options.get("weights", "model"), place)
    checkpoint = local_checkpoint(model)
    weights_dtype = dtype_of(dtype, place) or saved_dtype(checkpoint)
    settings = EvalSettings(
        k=tuple(sorted(set(k))),
        device=str(place),
        dtype=str(weights_dtype).removeprefix("torch."),
        **options,
    )
    if folder is not None:
        _check_apart(folder / "runs", settings)
    root = Path(dataset)
    models = Models(model, settings)
    plan = read_cells(root, choose(root, split, cells), settings, folder)
    results, bad = _rank(plan, CellRunner(models, settings, folder), settings, folder)
    report = build(str(dataset), models, settings, results)
    report["bad_cells"] = [asdict(cell) for cell in bad]
    report["notes"] += remarks([result.work for result in results])
    report["notes"] += [f"Not evaluated: {cell.name}: {cell.error}" for cell in bad]
    if folder is not None:
        _write(report, folder)
    return report


def _rank(
    plan: Plan, runner: CellRunner, settings: EvalSettings, folder: Path | None
) -> tuple[list[CellResult], list[BadCell]]:
    """Ranks and measures all cells; those whose data turn out bad are said and passed over.

    Raises:
        EvalError: no cell is left, or an outcome is not valid.
    """
    results, bad, written = [], list(plan.bad), list[Path]()
    for cell in bad:
        runner.say(f"not evaluated: {cell.name}: {cell.error}")
    for work in plan.works:
        try:
            run = runner.run(work)
        except (MBEIRError, ItemError, RequestTooLarge) as error:
            large = isinstance(error, RequestTooLarge)
            message = f"{error}{'; or lower --window or --k' * large}"
            bad.append(BadCell(work.cell.dataset, work.cell.split, work.pool.kind, message))
            runner.say(f"not evaluated: {bad[-1].name}: {message}")
            continue
        results.append(measure(run, settings))
        if folder is not None:
            written += write_runs(run, folder / "runs", settings.run_format)
    if not results:
        raise EvalError(f"no cell could be evaluated; {bad[-1].name}: {bad[-1].error}")
    if folder is not None:
        remove_others(folder / "runs", written)
    return results, bad


def _writable(folder: Path) -> Path:
    """The folder, made if it is missing.

    Raises:
        EvalError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise EvalError(
            f"cannot write to {folder} ({error.strerror}); name a folder that can be written"
        ) from error


def _check_apart(runs: Path, settings: EvalSettings) -> None:
    """Raises EvalError if the given lists are among the run files, which are written anew."""
    given = settings.candidates and Path(settings.candidates).resolve()
    if given and (given.is_relative_to(runs.resolve()) or runs.resolve().is_relative_to(given)):
        raise EvalError(
            f"{settings.candidates} would be overwritten by the run files in {runs}; name another "
            "--out"
        )


def _write(report: Report, folder: Path) -> None:
    """Writes report and chart."""
    if draw(report, folder / "chart.png"):
        report["chart"] = "chart.png"
    else:
        report["notes"].append("No chart: matplotlib is not installed (pip install matplotlib).")
    write_whole(folder / "report.json", report.to_json() + "\n")
    write_whole(folder / "report.md", report.to_markdown())
