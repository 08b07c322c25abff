"""What variants reach on lists of an evaluation, beside what the paper reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from retrv_r1.ablation.variants import VARIANTS, Variant
from retrv_r1.eval import run

RECALLS = ("1", "5")


@dataclass(frozen=True)
class Measuring:
    """How variants are measured.

    Args:
        dataset: data set in M-BEIR's layout.
        split, k, limit: as in ``retrv-r1 eval``; one ``k``.
        cells: names of cells; all if empty.
        mode: ``reason`` or ``fast``.
        candidates: lists of another first stage, which checkpoints without one need.
        device: device of the model.
    """

    dataset: Path
    split: str = "val"
    k: int = 50
    limit: int | None = None
    cells: tuple[str, ...] = ()
    mode: str = "reason"
    candidates: Path | None = None
    device: str = "cpu"

    def measure(self, model: Path, variant: Variant, out: Path) -> dict[str, Any]:
        """The evaluation of a checkpoint: recalls, cost, and 95 % intervals over queries."""
        reading: Any = "full" if variant.full_tokens else "compressed"
        mode: Any = self.mode
        report = run(
            self.dataset,
            model=model,
            k=(self.k,),
            split=self.split,
            cells=self.cells,
            device=self.device,
            out=out,
            modes=(mode,),
            readings=(reading,),
            limit=self.limit,
            candidates=None if self.candidates is None else str(self.candidates),
        )
        parts = [part["mean"] for part in report["parts"]]
        own = [next(row for row in rows if row["k"] == self.k) for rows in parts]
        gains = [part["differences"][0]["recall"] for part in report["parts"]]
        return {
            "recall": {at: _mean([row["recall"][at] for row in own]) for at in RECALLS},
            "cost": {name: _mean([row["cost"][name] for row in own]) for name in own[0]["cost"]},
            "gain": {at: [gain[at] for gain in gains] for at in RECALLS},
        }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def summary(
    name: str, variant: Variant, runs: Mapping[int, Mapping[str, Any]], failed: str | None
) -> dict[str, Any]:
    """A variant's row of the report.

    Args:
        runs: what :meth:`Measuring.measure` gave, by seed.
        failed: why it has no result.
    """
    found = {at: [one["recall"][at] for one in runs.values()] for at in RECALLS}
    return {
        "variant": name,
        "title": variant.title,
        "recall": {at: _mean(values) for at, values in found.items()},
        # Half of the range, for two seeds the distance of each from their mean.
        "spread": {at: (max(v) - min(v)) / 2 if v else None for at, v in found.items()},
        "seeds": {str(seed): dict(one) for seed, one in runs.items()},
        "cost": {
            cost: _mean([one["cost"][cost] for one in runs.values()])
            for cost in next(iter(runs.values()), {"cost": {}})["cost"]
        },
        "paper": dict(zip(("cirr", "oven"), variant.paper, strict=True)),
        "remark": variant.remark,
        "failed": failed,
    }


def render(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Prints the table, differences to the full recipe, and what is not as in the paper."""
    fulls = [row["recall"]["5"] for row in rows if row["variant"] == "full"]
    whole = fulls[0] if fulls else None
    table = Table("variant", title="Ablations: R@5 in %, and the paper's beside it (3B)")
    heads = ("R@1", "R@5", "± seeds", "to full", "inspections", "s / query")
    for head in (*heads, "paper: CIRR", "to full", "paper: OVEN", "to full"):
        table.add_column(head, justify="right")
    for row in rows:
        if row["failed"]:
            table.add_row(row["title"], f"failed: {row['failed']}")
            continue
        r5, spread, cost = row["recall"]["5"], row["spread"]["5"], row["cost"]
        cells = [_percent(row["recall"]["1"]), _percent(r5), _percent(spread)]
        cells.append(_difference(r5, whole, 100))
        for name, digits in (("inspections", 2), ("seconds", 3)):
            value = cost.get(name)
            cells.append("–" if value is None else f"{value:.{digits}f}")
        for place, pool in enumerate(("cirr", "oven")):
            own, of = row["paper"][pool], VARIANTS["full"].paper[place]
            cells += ["–" if own is None else f"{own:.1f}", _difference(own, of, 1)]
        table.add_row(row["title"], *cells)
    console.print(table)
    for row in rows:
        if row["remark"]:
            console.print(f"- {row['title']}: {row['remark']}", style="dim", highlight=False)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _difference(value: float | None, whole: float | None, scale: float) -> str:
    return "–" if value is None or whole is None else f"{scale * (value - whole):+.1f}"
