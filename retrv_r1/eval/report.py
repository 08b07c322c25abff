"""The report of an evaluation: JSON values with methods to render them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from retrv_r1.eval.cells import SPLITS
from retrv_r1.eval.metrics import CUTOFFS, hits, mean_interval
from retrv_r1.eval.outcomes import Outcome
from retrv_r1.eval.ranking import CellRun
from retrv_r1.eval.settings import FIRST_STAGE, EvalSettings, System
from retrv_r1.eval.tables import tables

Row = dict[str, Any]


class Report(dict[str, Any]):
    """The result of :func:`retrv_r1.eval.run`, a ``dict`` of JSON values.

    Recalls are fractions. Each of ``parts`` holds its ``cells``, their ``mean``, and the
    ``differences`` between systems with 95 % intervals.
    """

    def to_json(self) -> str:
        """The report as JSON, indented."""
        return json.dumps(self, ensure_ascii=False, allow_nan=False, indent=2)

    def to_markdown(self) -> str:
        """The report in Markdown: summary, differences, a table for each part, and notes."""
        parts = [f"# {self.title}"]
        if self.get("chart"):
            parts.append(f"![R@1 of the systems]({self['chart']})")
        parts += [f"## {table.title}\n\n{table.markdown()}" for table in tables(self)]
        parts.append("## How\n\n" + "\n".join(f"- {note}" for note in self["notes"]))
        return "\n\n".join(parts) + "\n"

    @property
    def title(self) -> str:
        return f"{self['model']} on {self['dataset']}"


def render(report: Report, console: Console) -> None:
    """Prints a report's tables and notes."""
    for table in tables(report):
        console.print(table.rich())
    for note in report["notes"]:
        console.print(f"- {note}", style="dim", markup=False, highlight=False)


def build(dataset: str, model: str, settings: EvalSettings, runs: Sequence[CellRun]) -> Report:
    """The report of ranked cells; checks every reranked list again, those from disk too.

    Raises:
        EvalError: an outcome is not valid.
    """
    checked = [outcome for run in runs for kept in run.reranked.values() for outcome in kept]
    for outcome in checked:
        outcome.check()
    names = sorted({run.part for run in runs}, key=SPLITS.index)
    return Report(
        dataset=Path(dataset).resolve().name,
        model=Path(model).name if Path(model).is_absolute() else model,
        settings={**asdict(settings), "k": list(settings.k), "modes": list(settings.modes)},
        parts=[_part(name, [run for run in runs if run.part == name], settings) for name in names],
        checks={
            "lists": len(checked),
            "answer_is_rank_1": len(checked),
            "scores_in_0_1_never_rising": len(checked),
            "well_formed": sum(outcome.well_formed for outcome in checked),
        },
        notes=_notes(settings, len(checked)),
    )


def _part(name: str, runs: Sequence[CellRun], settings: EvalSettings) -> Row:
    """Cells, mean and differences of one part."""
    recalls = [_recalls(run, settings) for run in runs]
    cells = [_cell(run, recall) for run, recall in zip(runs, recalls, strict=True)]
    rows = zip(*(cell["results"] for cell in cells), strict=True)
    return {
        "part": name,
        "cells": cells,
        "mean": [_mean(same) for same in rows],
        "differences": _differences(recalls, settings),
    }


_Key = tuple[System, int] | None
"""A reranked system and its candidate count; None is the first stage."""


def _recalls(run: CellRun, settings: EvalSettings) -> dict[_Key, dict[int, np.ndarray]]:
    depths = sorted({*CUTOFFS, *settings.k})
    found: dict[_Key, dict[int, np.ndarray]] = {None: hits(run.first, run.positives, depths)}
    for key, outcomes in run.reranked.items():
        found[key] = hits(outcomes, run.positives, CUTOFFS)
    return found


def _cell(run: CellRun, recalls: Mapping[_Key, Mapping[int, np.ndarray]]) -> Row:
    first: Row = {"system": FIRST_STAGE, "k": None, "recall": _means(recalls[None])}
    first["cost"] = {"seconds": _average([o.seconds for o in run.first])}
    results = [first]
    for (system, k), outcomes in run.reranked.items():
        recall = _means(recalls[system, k])
        row = {"system": system.name, "k": k, "recall": recall, "cost": _cost(outcomes)}
        results.append(row | {"well_formed": _average([o.well_formed for o in outcomes])})
    return {
        "cell": run.cell.dataset,
        "split": run.cell.split,
        "shape": run.shape,
        "queries": len(run.first),
        "pool": run.pool_size,
        "results": results,
    }


def _cost(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Mean costs over queries."""
    return {
        "rows_per_candidate": _average([o.candidate_rows / o.shown for o in outcomes]),
        "prompt_rows": _average([o.prompt_rows for o in outcomes]),
        "inspections": _average([len(o.inspected) for o in outcomes]),
        "inspected_rows": _average([o.inspected_rows for o in outcomes]),
        "generated": _average([o.generated for o in outcomes]),
        "seconds": _average([o.seconds for o in outcomes]),
    }


def _average(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _means(recall: Mapping[int, np.ndarray]) -> dict[str, float]:
    return {str(k): float(values.mean()) for k, values in recall.items()}


def _mean(rows: Sequence[Row]) -> Row:
    """The mean over cells of one system's rows."""
    mean: Row = {"system": rows[0]["system"], "k": rows[0]["k"]}
    for group in ("recall", "cost"):
        mean[group] = {key: _average([row[group][key] for row in rows]) for key in rows[0][group]}
    if "well_formed" in rows[0]:
        mean["well_formed"] = _average([row["well_formed"] for row in rows])
    return mean


def _differences(
    recalls: Sequence[Mapping[_Key, Mapping[int, np.ndarray]]], settings: EvalSettings
) -> list[Row]:
    """Differences of each system to the first stage, and of compressed to full tokens."""
    pairs: list[tuple[_Key, _Key, int]] = []
    for k in settings.k:
        pairs += [((system, k), None, k) for system in settings.systems]
        if settings.full_tokens:
            pairs += [
                ((system, k), (System(system.mode, "full"), k), k)
                for system in settings.systems
                if system.reading == "compressed"
            ]
    rows = []
    for left, right, k in pairs:
        recall = {}
        for cutoff in CUTOFFS:
            values = [cell[left][cutoff] - cell[right][cutoff] for cell in recalls]
            recall[str(cutoff)] = asdict(mean_interval(values, settings.seed))
        rows.append({"system": _name(left), "baseline": _name(right), "k": k, "recall": recall})
    return rows


def _name(key: _Key) -> str:
    return FIRST_STAGE if key is None else key[0].name


def _notes(settings: EvalSettings, lists: int) -> list[str]:
    """How the numbers were measured, for the reader of the report."""
    limit = "all queries" if settings.limit is None else f"{settings.limit} queries a cell at most"
    return [
        f"R@k: share of queries with a relevant candidate among the first k (M-BEIR's Recall@k); "
        f"{limit}; the mean of a split is over its cells.",
        f"K: the first stage's K best of the {settings.pool} pool are reranked, so its R@K is the "
        f"ceiling. Prompts show them in an order shuffled by seed ({settings.seed}) and query, so "
        "that positions do not tell their ranks; the instruction is the first phrasing.",
        "Differences are paired by query, with 95 % bootstrap intervals (queries resampled within "
        "their cell).",
        *(["Relation keys were rounded to int8."] if settings.int8_keys else []),
        *([f"Weights were rounded to {settings.weights}."] if settings.weights != "model" else []),
        f"Seconds per query: equal shares of a batch of up to {settings.batch_size} on "
        f"{settings.device}, weights in {settings.dtype}, without encoding items; for the first "
        "stage, without embedding the pool.",
        "Well-formed: the model ended its reasoning itself, and its likeliest token was always "
        "allowed by the output format, which the engine enforces; an inspection beyond the limit "
        "is refused and does not count against it.",
        f"Checked: all {lists} reranked lists have their answer at rank 1, and scores in [0, 1] "
        "that never rise; the evaluation stops otherwise.",
    ]
