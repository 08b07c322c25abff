"""The ops between the linear layers of a decoder: add_rms_norm, rotate_to_pages, silu_product."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from bench.harness import Entry, Prepared, Trial
from bench.suites.kernels.entries import (
    QWEN_3B,
    QWEN_7B,
    Context,
    Model,
    call,
    converted,
    copied,
    implementations,
)
from retrv_kernels.add_rms_norm import cases as add_rms_norm
from retrv_kernels.cases import TOLERANCE, expected_of, written
from retrv_kernels.inputs import Case
from retrv_kernels.rotate_to_pages import cases as rotate_to_pages
from retrv_kernels.silu_product import cases as silu_product

INNER = {"3B": 11008, "7B": 18944}  # width of the feed-forward layer


def trials(context: Context, quick: bool) -> Iterator[Trial]:
    """Trials with the rows of a decode step and of a prefill."""
    for model in (QWEN_3B,) if quick else (QWEN_3B, QWEN_7B):
        for rows in (8,) if quick else (1, 8, 32, 512):
            yield from layer_trials(context, model, rows)


def layer_trials(context: Context, model: Model, rows: int) -> Iterator[Trial]:
    """A trial of each op."""
    name, inner = f"{model.name}, {rows} row{'s' if rows > 1 else ''}", INNER[model.name]
    (heads, kv_heads), d_h = model.heads, model.d_h
    yield _trial(context, add_rms_norm.make(name, rows, model.d), 4 * rows * model.d)
    yield _trial(context, silu_product.make(name, rows, inner), 3 * rows * inner)
    case = rotate_to_pages.make(name, rows, model.heads, d_h)
    yield _trial(context, case, rows * d_h * (2 * heads + 4 * kv_heads + 2))


def _trial(context: Context, case: Case, elements: int) -> Trial:
    """A trial that reads and writes a number of elements."""

    def run(arguments: Mapping[str, Any]) -> list[Tensor]:
        out = call(case.op, arguments)
        results = [out] if isinstance(out, Tensor) else list(out)
        return results + [arguments[name] for name in written(case.op)]

    def entries(arguments: Mapping[str, Any]) -> list[Entry]:
        return implementations(case.op, context.device, partial(run, arguments))

    def prepare() -> Prepared:
        arguments = converted(case.arguments(context.dtype), context.device)
        # The reference runs before any entry writes into the arguments.
        expected = expected_of(case.op, arguments)
        return Prepared(lambda: expected, entries(arguments), lambda: entries(copied(arguments)))

    return Trial(
        op=case.op,
        name=case.name,
        dtype=context.dtype_name,
        shape=case.shape,
        flops=case.flops,
        bytes=context.dtype.itemsize * elements,
        tolerance=TOLERANCE[case.op][context.dtype],
        prepare=prepare,
    )
