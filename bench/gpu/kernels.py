"""The kernels and what they replace, at the shapes of real models in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from bench import harness
from bench.gpu.context import Context, Row
from bench.harness import Trial
from bench.suites.kernels import attention, layer, tokens
from bench.suites.kernels.entries import TINY, UNCOMPILED, Model
from bench.suites.kernels.entries import Context as Where
from bench.suites.kernels.sizes import Sizes

ROUNDS = (3, 20)


def run(context: Context, name: str, part: str) -> Iterator[Row]:
    """Yields the harness's rows of each trial when it is done."""
    rates = [rate["median"] for name, rate in context.ceilings.items() if "gemm" in name]
    rate = max(rates, default=1e12)
    where = Where(context.device.kind, rate, torch.bfloat16, None)
    compiling = replace(where, compiling=context.scale.compiling)
    first, *_ = models = context.scale.kernels
    last: list[tuple[Trial, set[str]]] = []
    for trials in (_first_trials, _later_trials):
        for model in models:
            for trial, again in zip(trials(where, model), trials(compiling, model), strict=True):
                rows, later = list(_rows(context, trial, part)), set[str]()
                if model is first and compiling.compiling is not None:
                    later = {row["implementation"] for row in rows if row["note"] == UNCOMPILED}
                    last.append((again, later))
                yield from (row for row in rows if row.get("implementation") not in later)
    # Compiling a peer takes seconds: it is done last, and for the first model only.
    for trial, names in last:
        if names:
            rows = list(_rows(context, trial, part))
            yield from (row for row in rows if row.get("implementation") in {None, *names})


def _rows(context: Context, trial: Trial, part: str) -> Iterator[Row]:
    """Rows of a trial, or one row of kind "trial" that says why there are none."""
    rows: list[Row] = []

    def measure() -> Row:
        budget = context.scale.seconds / 4
        rows.extend(harness.run(trial, budget, rounds=ROUNDS, device=context.device))
        return {}

    begun = {"op": trial.op, "name": trial.name, "part": part, "kind": "trial"}
    ended = context.measured(begun, measure)
    yield from (row | {"part": part, "kind": "kernel"} for row in rows)
    if "note" in ended:
        yield ended


def _first_trials(where: Where, model: Model) -> Iterator[Trial]:
    if model is TINY:  # the rehearsal
        yield attention.paged(where, model, "decode", 1, 64, 2)
        yield attention.shared(where, model, "flat", _flat(2, 32, 16), 2)
        yield from tokens.trials(where, [Sizes(model, 3, 12)])
        yield from tokens.trials(where, [Sizes(model, 3, 12, 8, plots=("ratios",))])
        return
    yield attention.paged(where, model, "decode", 1, 1088, 8)
    yield attention.paged(where, model, "decode", 1, 12800, 1)
    yield attention.shared(where, model, "flat", _flat(8, 1024, 64), 8)
    sizes = [
        Sizes(model, plots=("ratios",)),
        Sizes(model, asked=64, plots=("ratios",)),
        Sizes(model, rows=81),
        Sizes(model, rows=81, asked=64),
    ]
    # On a GPU int8 rows are computed in float32; `make bench` measures them.
    yield from (trial for trial in tokens.trials(where, sizes) if trial.dtype != "int8")


def _later_trials(where: Where, model: Model) -> Iterator[Trial]:
    if model is TINY:
        return
    yield attention.paged(where, model, "prefill", 512, 12800, 1)
    yield attention.shared(where, model, "flat", _flat(32, 8000, 64), 32)
    yield attention.paged(where, model, "decode", 1, 200, 1)
    yield from layer.layer_trials(where, model, 8)
    sizes = [Sizes(model, asked=8), Sizes(model, asked=256)]
    sizes += [Sizes(model, 20, 1280), Sizes(model, 20, 1280, 64)]
    yield from tokens.trials(where, sizes)


def _flat(count: int, prefix: int, tail: int) -> tuple[tuple[int, tuple[int, int]], ...]:
    """Nodes of sequences with one shared prefix and a tail each."""
    return ((prefix, (0, count)), *((tail, (i, i + 1)) for i in range(count)))
