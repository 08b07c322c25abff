"""splice_features: sequences that each inspect one candidate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from bench.harness import Entry, Prepared, Trial
from bench.suites.kernels import peers
from bench.suites.kernels.entries import QWEN_3B, QWEN_7B, TINY, Context, Model, moved, ours
from retrv_kernels import inputs, ops
from retrv_kernels.cases import TOLERANCE
from retrv_kernels.ops import Span

PAGE = 16
WORDS = 4096  # rows of the embedding table; more would not be read


def trials(context: Context, quick: bool) -> Iterator[Trial]:
    """Eight sequences, each with one candidate of 50 between wrapper tokens."""
    yield _trial(context, TINY, 12, 4)
    yield _trial(context, QWEN_3B, 256, 16)
    if not quick:
        yield _trial(context, QWEN_7B, 256, 16)


def _trial(context: Context, model: Model, rows: int, width: int) -> Trial:
    """Candidates of ``rows`` rows in a grid of some width, behind 600 cached rows."""
    sequences, candidates, cached = 8, 50, 600
    spans = []
    for i in range(sequences):
        first, inside, last = 7 * i % candidates * rows, cached + 3, cached + 3 + rows
        spans += [
            Span(0, 100 + i, 3, cached, 0, i, cached),
            Span(1, first, rows, inside, width, i, inside),
            Span(0, 900 + i, 2, inside + rows // width, 0, i, last),
        ]
    case = inputs.splice_features(
        f"{model.name} {sequences} × {rows}",
        [(WORDS, False), (candidates * rows, False)],
        spans,
        model.d,
        page_size=PAGE,
        pages=(sequences, -(-(cached + rows + 5) // PAGE)),
    )

    def prepare() -> Prepared:
        arguments = moved(case.arguments(torch.float32), context.device)
        splice = partial(ops.splice_features, **arguments)
        names = ("stores", "spans", "page_table", "page_size")
        plain = {name: arguments[name] for name in names}
        entries = ours(case.op, context.device, splice, "reference")
        entries.append(Entry("torch.cat", partial(peers.splice, **plain), baseline=True))
        exact = partial(peers.splice, **moved(plain, torch.float64))
        return Prepared(exact, entries)

    return Trial(
        op=case.op,
        name=case.name,
        dtype="float32",
        shape=case.shape,
        flops=case.flops,
        bytes=case.shape["rows"] * (2 * 4 * model.d + 4 * 8),  # in and out; positions and slot
        tolerance=TOLERANCE[case.op][torch.float32],
        prepare=prepare,
        plots=("ratios",),
    )
