"""splice_features, with sequences that each inspect one candidate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch

from bench.harness import Entry, Prepared, Trial
from bench.suites.kernels import peers
from bench.suites.kernels.entries import (
    QWEN_3B,
    QWEN_7B,
    TINY,
    Context,
    Model,
    converted,
    copied,
    implementations,
)
from retrv_kernels import ops
from retrv_kernels.cases import TOLERANCE
from retrv_kernels.ops import Span
from retrv_kernels.splice_features.cases import make

PAGE = 16
VOCABULARY = 4096  # rows of the embedding table; no span reads more


def trials(context: Context, quick: bool) -> Iterator[Trial]:
    """Trials of eight sequences, each with one of 50 candidates between wrapper tokens."""
    yield _trial(context, TINY, 12, 4)
    yield _trial(context, QWEN_3B, 256, 16)
    if not quick:
        yield _trial(context, QWEN_7B, 256, 16)


def _trial(context: Context, model: Model, rows: int, width: int) -> Trial:
    """A trial of candidates with ``rows`` rows, a grid ``width`` wide, after 600 cached rows."""
    sequences, candidates, cached = 8, 50, 600
    spans = []
    for i in range(sequences):
        first, inside, last = 7 * i % candidates * rows, cached + 3, cached + 3 + rows
        spans += [
            Span(0, 100 + i, 3, cached, 0, i, cached),
            Span(1, first, rows, inside, width, i, inside),
            Span(0, 900 + i, 2, inside + rows // width, 0, i, last),
        ]
    case = make(
        f"{model.name} {sequences} × {rows}",
        [(VOCABULARY, False), (candidates * rows, False)],
        spans,
        model.d,
        page_size=PAGE,
        pages=(sequences, -(-(cached + rows + 5) // PAGE)),
    )

    names = ("stores", "spans", "page_table", "page_size")

    def entries(arguments: Mapping[str, Any]) -> list[Entry]:
        plain = {name: arguments[name] for name in names}
        made = implementations(case.op, context.device, partial(ops.splice_features, **arguments))
        return [*made, Entry("torch.cat", partial(peers.splice, **plain), baseline=True)]

    def prepare() -> Prepared:
        arguments = converted(case.arguments(context.dtype), context.device)
        wide = converted({name: arguments[name] for name in names}, torch.float64)
        exact = partial(peers.splice, **wide)
        return Prepared(exact, entries(arguments), lambda: entries(copied(arguments)))

    return Trial(
        op=case.op,
        name=case.name,
        dtype=context.dtype_name,
        shape=case.shape,
        flops=case.flops,
        # A row is read and written; its three positions and its slot are written.
        bytes=case.shape["rows"] * (2 * context.dtype.itemsize * model.d + 4 * 8),
        tolerance=TOLERANCE[case.op][context.dtype],
        prepare=prepare,
        plots=("ratios",),
    )
