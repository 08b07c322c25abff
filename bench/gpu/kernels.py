"""The kernels at the shapes of real models in bfloat16, beside what they replace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from bench import harness
from bench.gpu.context import Context, Row
from bench.harness import Trial
from bench.suites.kernels import attention, layer, tokens
from bench.suites.kernels.entries import TINY, Model
from bench.suites.kernels.entries import Context as Where
from bench.suites.kernels.tokens import Sizes

ROUNDS = (3, 20)


def run(context: Context, name: str, part: str) -> Iterator[Row]:
    """Rows of the harness, each trial once it is done."""
    rates = [rate["median"] for name, rate in context.ceilings.items() if "gemm" in name]
    rate = max(rates, default=1e12)
    where = Where(context.device.kind, rate, torch.bfloat16, context.scale.compiling)
    for number, model in enumerate(context.scale.kernels):
        # Compiling a peer takes seconds: of the first model alone.
        own = where if number == 0 else replace(where, compiling=None)
        for trial in _trials(own, model):
            rows: list[Row] = []
            begun = {"op": trial.op, "name": trial.name, "part": part, "kind": "trial"}
            ended = context.measured(begun, partial(_run, context, trial, rows))
            yield from (row | {"part": part, "kind": "kernel"} for row in rows)
            if "note" in ended:  # no time, or an error before anything could run
                yield ended


def _run(context: Context, trial: Trial, rows: list[Row]) -> Row:
    """Adds the rows of a trial."""
    budget = context.scale.seconds / 4
    rows += harness.run(trial, budget, rounds=ROUNDS, device=context.device)
    return {}


def _trials(where: Where, model: Model) -> Iterator[Trial]:
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
    # int8 rows are a GPU's float32 arithmetic: `make bench` measures them.
    yield from (trial for trial in tokens.trials(where, sizes) if trial.dtype != "int8")
    yield attention.paged(where, model, "prefill", 512, 12800, 1)
    yield attention.shared(where, model, "flat", _flat(32, 8000, 64), 32)
    yield attention.paged(where, model, "decode", 1, 200, 1)
    yield from layer.of(where, model, 8)
    sizes = [Sizes(model, asked=8), Sizes(model, asked=256)]
    sizes += [Sizes(model, 20, 1280), Sizes(model, 20, 1280, 64)]
    yield from tokens.trials(where, sizes)


def _flat(count: int, prefix: int, tail: int) -> tuple[tuple[int, tuple[int, int]], ...]:
    """Sequences with one prefix and a tail each."""
    return ((prefix, (0, count)), *((tail, (i, i + 1)) for i in range(count)))
