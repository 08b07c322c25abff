"""The report of an evaluation: JSON values with methods to render them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from retrv_r1.eval.benchmark import rank_of
from retrv_r1.eval.chains import ChainCounts
from retrv_r1.eval.metrics import CUTOFFS, mean_interval
from retrv_r1.eval.models import Models
from retrv_r1.eval.notes import notes
from retrv_r1.eval.reliability import Judged
from retrv_r1.eval.result import CellResult, Key, Row, average
from retrv_r1.eval.settings import FIRST_STAGE, EvalSettings, System
from retrv_r1.eval.tables import tables


class Report(dict[str, Any]):
    """The result of :func:`retrv_r1.eval.run`, a ``dict`` of JSON values.

    Recalls are fractions. Each of ``parts`` holds its ``cells``, their ``mean``, and the
    ``differences`` between systems with 95 % intervals. ``mbeir`` of a cell's system is the recall
    that the benchmark's tables show, if it is one of M-BEIR's cells; its mean is over those.
    ``calibration`` has a row for each part and system whose scores were judged
    (:class:`retrv_r1.eval.reliability.Judged`).
    ``chains`` of a reasoning system counts what its chains say, over the cells in the mean; see
    :class:`retrv_r1.eval.chains.ChainCounts`.
    """

    def to_json(self) -> str:
        """The report as JSON, indented."""
        return json.dumps(self, ensure_ascii=False, allow_nan=False, indent=2)

    def to_markdown(self) -> str:
        """The report in Markdown: summary, differences, a table for each part, and notes."""
        parts = [f"# {self.title}"]
        if self.get("chart"):
            parts.append(f"![R@1 of the systems]({self['chart']})")
        if self.get("reliability"):
            parts.append(f"![Share right by score]({self['reliability']})")
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


def build(
    dataset: str, models: Models, settings: EvalSettings, results: Sequence[CellResult]
) -> Report:
    """The report of measured cells."""
    parts: dict[str, list[CellResult]] = {}
    for result in sorted(results, key=lambda result: rank_of(result.work.cell.dataset)):
        parts.setdefault(result.work.part, []).append(result)
    names = dict.fromkeys(result.work.part for result in results)
    lists = sum(result.lists for result in results)
    return Report(
        dataset=Path(dataset).resolve().name,
        model=Path(models.name).name if Path(models.name).is_absolute() else models.name,
        settings={
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(settings).items()
        },
        parts=[_part(name, parts[name], settings) for name in names],
        calibration=[
            row for name in names for row in _calibration(name, parts[name], settings.systems)
        ],
        checks={
            "lists": lists,
            "answer_is_rank_1": lists,
            "scores_in_0_1_never_rising": sum(result.probabilities for result in results),
            "well_formed": sum(result.well_formed for result in results),
        },
        notes=notes(settings, models, results, lists),
    )


def _part(name: str, results: Sequence[CellResult], settings: EvalSettings) -> Row:
    """Cells, mean and differences of one part."""
    rows = zip(*(result.row["results"] for result in results), strict=True)
    return {
        "part": name,
        "cells": [result.row for result in results],
        "mean": [_mean(same) for same in rows],
        "differences": _differences([result.recalls for result in results], settings),
    }


def _calibration(part: str, results: Sequence[CellResult], systems: Sequence[System]) -> list[Row]:
    """Whether the scores of a part's systems are probabilities; none where it was not measured."""
    rows = []
    for system in systems:
        cells = [cell.calibration[system] for cell in results if system in cell.calibration]
        if cells:
            rows.append({"part": part, "system": system.name, **Judged.joined(cells).row()})
    return rows


def _mean(rows: Sequence[Row]) -> Row:
    """The mean over cells of one system's rows."""
    mean: Row = {"system": rows[0]["system"], "k": rows[0]["k"]}
    for group in ("recall", "cost"):
        mean[group] = {key: average([row[group][key] for row in rows]) for key in rows[0][group]}
    if "chains" in rows[0]:
        counts = [ChainCounts.from_row(row["chains"]) for row in rows]
        mean["chains"] = sum(counts, ChainCounts()).row()
    if "well_formed" in rows[0]:
        mean["well_formed"] = average([row["well_formed"] for row in rows])
    if own := [row["mbeir"] for row in rows if "mbeir" in row]:
        mean["mbeir"] = average(own)
    return mean


def _differences(
    recalls: Sequence[Mapping[Key, Mapping[int, np.ndarray]]], settings: EvalSettings
) -> list[Row]:
    """Differences of each system to the first stage, and of compressed to full tokens."""
    pairs: list[tuple[Key, Key, int]] = []
    for k in settings.k:
        pairs += [((system, k), None, k) for system in settings.systems]
        pairs += [
            ((system, k), (full, k), k)
            for system in settings.systems
            if system.reading == "compressed"
            and (full := System(system.mode, "full")) in settings.systems
        ]
    rows = []
    for left, right, k in pairs:
        recall = {}
        for cutoff in CUTOFFS:
            values = [cell[left][cutoff] - cell[right][cutoff] for cell in recalls]
            recall[str(cutoff)] = asdict(mean_interval(values, settings.seed))
        rows.append({"system": _name(left), "baseline": _name(right), "k": k, "recall": recall})
    return rows


def _name(key: Key) -> str:
    return FIRST_STAGE if key is None else key[0].name
