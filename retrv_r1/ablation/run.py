"""Trains and measures variants, and writes the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from retrv_r1.ablation.report import Measuring, summary
from retrv_r1.ablation.training import Recipe, train_all
from retrv_r1.ablation.variants import VARIANTS
from retrv_r1.files import write_whole
from retrv_r1.types import RetrvError

Told = Callable[[int, int, str], None]


def ablations(
    recipe: Recipe,
    measuring: Measuring,
    out: Path,
    names: Sequence[str] | None,
    seeds: Iterable[int],
    told: Told = lambda *_: None,
) -> dict[str, Any]:
    """Trains what is not trained yet, measures, and writes ``report.json`` to ``out``.

    Args:
        names: names of variants; all by default.
        told: function that is told of the progress: steps done, steps in all, what comes next.
    Raises:
        RetrvError: an unknown variant, or configurations or data that cannot be used.
    """
    for name in names or ():
        if name not in VARIANTS:
            raise RetrvError(f"unknown variant {name!r}: choose from {', '.join(VARIANTS)}")
    chosen = {name: one for name, one in VARIANTS.items() if not names or name in names}
    tried = list(seeds)
    plans = {(name, s): recipe.plan(one, s) for name, one in chosen.items() for s in tried}
    failed = train_all(recipe, list(plans.values()), told)
    rows, done = [], 0
    for name, variant in chosen.items():
        runs, why = {}, None
        for seed in tried:
            told(done, len(plans), f"measure {name}, seed {seed}")
            done += 1
            last = plans[name, seed][-1]
            if last.config.out in failed:
                why = failed[last.config.out]
                continue
            runs[seed] = measuring.measure(last.final, variant, out / "eval" / f"{name}-{seed}")
        rows.append(summary(name, variant, runs, why if not runs else None))
    report = {
        "seeds": tried,
        "stages": recipe.stages,
        "split": measuring.split,
        "k": measuring.k,
        "mode": measuring.mode,
        "variants": rows,
    }
    write_whole(out / "report.json", json.dumps(report, ensure_ascii=False, indent=2) + "\n")
    return report
