"""The aims of the GPU benchmark, and whether a report meets them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bench import report as reports

Values = Mapping[str, Any]
Aim = tuple[str, str, str, bool]
"""What is aimed at, the value reached, the value aimed at, and whether it is met."""

OURS = ("triton", "native")
TIME, MEMORY, REASONED, FAST, STEP, BANDWIDTH = 7.0, 3.0, 0.5, 0.025, 1.5, 0.6
"""Full over compressed, in time and in memory above the weights; seconds of a reasoned and of a
fast request; time of a step over its floor; share of bandwidth."""
LATENCY = 5e-6
"""Seconds of a launch: kernels whose memory could be read faster have no bandwidth aim."""
FULL = "transformers, full tokens"
COMPRESSED = "ours, compressed"


def aims(report: Values) -> Iterator[Aim]:
    """All aims that the report has rows for."""
    yield from _request_aims(report)
    yield from _step_aims(report)


def _request_aims(report: Values) -> Iterator[Aim]:
    rows = rows_of(report, "efficiency", "total")
    full = {case_of(row): row for row in rows if row["form"] == FULL}
    for row in rows:
        model, candidates, length = case_of(row)
        case = f"{model}, {candidates} × {length:,}"
        total, base = row["total"]["median"], full.get(case_of(row))
        if row["form"] == COMPRESSED:
            case += f", {row['inspections']} inspections"
            if base is not None:
                time = base["total"]["median"] / total
                yield f"time, full over compressed: {case}", f"{time:.1f}", "≥ 7", time >= TIME
            if base is not None and row["above_weights"] > 0:
                # Above the weights, because both forms hold the same ones.
                memory = base["above_weights"] / row["above_weights"]
                what = f"memory above weights, full over compressed: {case}"
                yield what, f"{memory:.1f}", "≥ 3", memory >= MEMORY
            if model == "7B" and row["inspections"]:
                yield f"reasoned: {case}", reports.duration(total), "≤ 0.5 s", total <= REASONED
        if row["form"] == "ours, fast":
            yield f"fast: {case}", reports.duration(total), "≤ 25 ms", total <= FAST


def _step_aims(report: Values) -> Iterator[Aim]:
    for row in rows_of(report, "step", "floor"):
        if row["form"] == "replayed":
            ratio = row["seconds"]["median"] / row["floor"]
            case = f"{row['model']}, {row['sequences']} sequences"
            yield f"a step over its floor: {case}", f"{ratio:.2f}", "≤ 1.5", ratio <= STEP
    ceilings = report["card"].get("ceilings")
    for row in rows_of(report, "kernel", "seconds") if ceilings else ():
        bound = reports.bound(row, ceilings)
        if row["implementation"] in OURS and bound and bound["name"] in ("copy", "read"):
            reached = bound["fraction"]
            if reached * row["seconds"]["median"] < LATENCY:
                continue
            what = f"bandwidth: {row['op']}, {row['name']}, {row['dtype']}"
            yield what, f"{100 * reached:.0f} %", "≥ 60 %", reached >= BANDWIDTH


def rows_of(report: Values, kind: str, key: str) -> list[Values]:
    """Rows of a kind in which ``key`` was measured."""
    return [row for row in report["rows"] if row["kind"] == kind and row.get(key)]


def case_of(row: Values) -> tuple[str, int, int]:
    """Model, number of candidates, rows of each."""
    return row["model"], row["candidates"], row["rows"]
