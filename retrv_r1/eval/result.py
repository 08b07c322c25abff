"""What the report needs of a ranked cell; the outcomes themselves are not kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrv_r1.eval.benchmark import CUTOFF_OF
from retrv_r1.eval.chains import count_chains
from retrv_r1.eval.metrics import cutoffs, hits
from retrv_r1.eval.names import Names
from retrv_r1.eval.outcomes import Outcome
from retrv_r1.eval.plan import CellWork
from retrv_r1.eval.ranking import CellRun
from retrv_r1.eval.reliability import Judged
from retrv_r1.eval.settings import FIRST_STAGE, EvalSettings, System

Row = dict[str, Any]
Key = tuple[System, int] | None
"""A reranked system and its candidate count; None is the first stage."""


@dataclass(frozen=True)
class CellResult:
    """A measured cell; a query takes some bytes, and not the kilobytes of its outcomes.

    Attributes:
        row: the cell's row of the report.
        recalls: whether each query was found, by system and cutoff.
        cut: see :class:`CellRun`.
        cut_queries: number of queries whose text the first stage has cut.
        calibration: lists of many lengths, judged, by system.
        lists, probabilities, well_formed: number of reranked lists, of those with scores in [0, 1],
            and of those that are well-formed.
    """

    work: CellWork
    row: Row
    recalls: Mapping[Key, Mapping[int, np.ndarray]]
    cut: int | None
    cut_queries: int
    calibration: Mapping[System, Judged]
    lists: int
    probabilities: int
    well_formed: int


def measure(run: CellRun, settings: EvalSettings, names: Names) -> CellResult:
    """Measures a ranked cell; checks every reranked list again, those from disk too.

    Args:
        names: names of the data set's candidates, which chains are compared with.
    Raises:
        EvalError: an outcome is not valid.
    """
    lists = [(system, one) for (system, _), kept in run.reranked.items() for one in kept]
    for system, outcome in lists:
        outcome.check(probabilities=not system.fused)
    recalls = _recalls(run, settings)
    return CellResult(
        work=run.work,
        row=_cell(run, recalls, names),
        recalls=recalls,
        cut=run.cut,
        cut_queries=sum(outcome.cut for outcome in run.first),
        calibration=_judged(run),
        lists=len(lists),
        probabilities=sum(not system.fused for system, _ in lists),
        well_formed=sum(outcome.well_formed for _, outcome in lists),
    )


def _judged(run: CellRun) -> dict[System, Judged]:
    positives = {qid: frozenset(dids) for qid, dids in run.positives.items()}
    for outcomes in run.calibration.values():
        for outcome in outcomes:
            outcome.check()
    return {system: Judged.of(found, positives) for system, found in run.calibration.items()}


def _recalls(run: CellRun, settings: EvalSettings) -> dict[Key, dict[int, np.ndarray]]:
    depths = sorted({*cutoffs(settings.k), *settings.k})
    found: dict[Key, dict[int, np.ndarray]] = {None: hits(run.first, run.positives, depths)}
    for key, outcomes in run.reranked.items():
        found[key] = hits(outcomes, run.positives, cutoffs(settings.k))
    return found


def _cell(run: CellRun, recalls: Mapping[Key, Mapping[int, np.ndarray]], names: Names) -> Row:
    first: Row = {"system": FIRST_STAGE, "k": None, "recall": _means(recalls[None])}
    measured = run.work.given is None
    first["cost"] = {"seconds": average([o.seconds for o in run.first])} if measured else {}
    results = [first]
    for (system, k), outcomes in run.reranked.items():
        recall = _means(recalls[system, k])
        row = {"system": system.name, "k": k, "recall": recall, "cost": _cost(outcomes)}
        row["well_formed"] = average([o.well_formed for o in outcomes])
        if system.mode == "reason":
            row["chains"] = count_chains(run.work.task, names, outcomes).row()
        results.append(row)
    name = run.work.cell.dataset
    if cutoff := CUTOFF_OF.get(name):
        results = [row | {"mbeir": row["recall"][str(cutoff)]} for row in results]
    return {
        "cell": name,
        "mbeir_cutoff": cutoff,
        "split": run.work.cell.split,
        "shape": run.work.shape,
        "queries": len(run.first),
        "pool": len(run.work.task.pool),
        "counts": run.work.counts,
        "results": results,
    }


def _cost(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Mean costs over queries."""
    return {
        "rows_per_candidate": average([o.candidate_rows / o.shown for o in outcomes]),
        "prompt_rows": average([o.prompt_rows for o in outcomes]),
        "inspections": average([len(o.inspected) for o in outcomes]),
        "inspected_rows": average([o.inspected_rows for o in outcomes]),
        "generated": average([o.generated for o in outcomes]),
        "seconds": average([o.seconds for o in outcomes]),
    }


def average(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _means(recall: Mapping[int, np.ndarray]) -> dict[str, float]:
    return {str(k): float(values.mean()) for k, values in recall.items()}
