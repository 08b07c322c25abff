"""Calibrates a checkpoint on validation lists of one or more data sets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retrv_r1.eval.cells import EvalError
from retrv_r1.eval.fitting import Lists, Measures, fit
from retrv_r1.eval.models import Models
from retrv_r1.eval.outcomes import Outcome
from retrv_r1.eval.ranking import CellRun, CellRunner
from retrv_r1.eval.settings import EvalSettings
from retrv_r1.eval.validation import val_cells
from retrv_r1.files import write_whole
from retrv_r1.model.calibration import ModeCalibration
from retrv_r1.types import CheckpointError, Mode

_OLDER = ("score_temperature", "reason_temperature")


@dataclass(frozen=True)
class Calibration:
    """Result of fitting one mode.

    Attributes:
        calibration, before: fitted calibration, and the checkpoint's earlier one.
        lists: number of validation lists.
        without_answer: number of those without a relevant candidate.
        accuracy: share of lists in which a relevant candidate has the best score; where several
            candidates share it, their relevant share.
        after_fit, before_fit: measures with either.
        tried: nll of each form that was fitted, by the parameters that it has.
    """

    calibration: ModeCalibration
    before: ModeCalibration
    lists: int
    without_answer: int
    accuracy: float
    after_fit: Measures
    before_fit: Measures
    tried: dict[str, float]


def calibrate(
    model_dir: str | Path,
    datasets: str | Path | Sequence[str | Path],
    *,
    modes: Sequence[Mode] = ("fast", "reason"),
    k: int = 50,
    without_answer: float = 0.25,
    limit: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    device: str = "cpu",
) -> dict[Mode, Calibration]:
    """Fits the calibration of each mode on val splits, and writes it to the config.

    The lists are those of :func:`retrv_r1.eval.calibration_lists.calibration_lists`, of all data
    sets together. Answers of reason mode are greedy, with one chain of thought for each list. Lists
    without the answer count only for a model that has a label for none of these.

    Args:
        model_dir: directory of a checkpoint; its ``config.json`` is changed.
        datasets: directories in M-BEIR's layout with a val split.
        modes: modes to calibrate, in this order; one that fails leaves those before it written.
        k: number of candidates of the longest lists, at most the reranker's window: there the
            scores of a list are one softmax.
        limit, without_answer, batch_size, seed, device: see :class:`EvalSettings`.
    Raises:
        CheckpointError: no such directory, or no first stage in it.
        EvalError: no val split, or no lists to fit on.
    """
    folder = Path(model_dir)
    config = folder / "config.json"
    if not config.is_file():
        raise CheckpointError(f"{folder} is not a checkpoint's directory: it has no config.json")
    settings = EvalSettings(
        k=(k,),
        modes=tuple(modes),
        full_tokens=False,
        limit=limit,
        batch_size=batch_size,
        calibration=True,
        without_answer=without_answer,
        seed=seed,
        device=device,
    )
    models = Models(folder, settings)
    runner = CellRunner(models, settings, None)
    runs = [runner.run_calibration(work) for work in val_cells(datasets, settings)]
    found: dict[Mode, Calibration] = {}
    for mode in modes:
        before = models.reranker.model.config.calibration_of(mode)
        lists = _lists(runs, mode, before)
        try:
            fitted, tried = fit(lists)
        except EvalError as error:
            raise EvalError(f"{mode} mode: {error}") from error
        _write(config, mode, fitted)
        found[mode] = Calibration(
            calibration=fitted,
            before=before,
            lists=len(lists.logits),
            without_answer=int((~lists.answered).sum()),
            accuracy=lists.accuracy(fitted),
            after_fit=lists.measures(fitted),
            before_fit=lists.measures(before),
            tried=tried,
        )
    return found


def _write(config: Path, mode: Mode, fitted: ModeCalibration) -> None:
    """Sets a mode's calibration in the config, which is replaced in one step; a link stays."""
    values: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    older = {
        name: {"temperature": values[field]}
        for name, field in zip(("fast", "reason"), _OLDER, strict=True)
        if values.get(field) is not None
    }
    values = {name: value for name, value in values.items() if name not in _OLDER}
    values["calibration"] = {**older, **(values.get("calibration") or {}), mode: asdict(fitted)}
    write_whole(config, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _lists(runs: Sequence[CellRun], mode: Mode, before: ModeCalibration) -> Lists:
    """The lists of a mode, with logits read off scores, up to a constant."""
    kept = [
        (
            outcome,
            [i for i, did in enumerate(outcome.ranking) if did in run.positives[outcome.qid]],
            run.resemblance_of(outcome).double(),
        )
        for run in runs
        for system, outcomes in run.calibration.items()
        for outcome in (outcomes if system.mode == mode else ())
    ]
    says = all(outcome.none_of_these is not None for outcome, _, _ in kept)
    kept = [one for one in kept if says or one[1]]
    known = [resemblance for _, _, resemblance in kept]
    read = [_logits(outcome, before, resemblance) for outcome, _, resemblance in kept]
    none = [float(last) for _, last in read] if says else None
    relevant = [relevant for _, relevant, _ in kept]
    return Lists.of([logits for logits, _ in read], relevant, none, known)


def _logits(
    outcome: Outcome, before: ModeCalibration, resemblance: Tensor
) -> tuple[Tensor, Tensor]:
    logs = torch.tensor(outcome.scores, dtype=torch.double).clamp(min=1e-300).log()
    share = outcome.none_of_these
    last = None if share is None else torch.tensor(share, dtype=torch.double).clamp(1e-300).log()
    logits, of_none = before.logits_of(logs, last)
    return logits - before.bias(resemblance), of_none
