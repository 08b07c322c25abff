"""paged_attention and shared_prefix_attention, compared with PyTorch and with each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.harness import Entry, Prepared, Trial
from bench.suites.kernels import peers
from bench.suites.kernels.entries import (
    MULTI_HEAD,
    QWEN_3B,
    QWEN_7B,
    TINY,
    Context,
    Model,
    call,
    compiled,
    converted,
    copied,
    implementations,
)
from retrv_kernels.cases import TOLERANCE
from retrv_kernels.inputs import Case
from retrv_kernels.paged_attention import cases as paged_attention
from retrv_kernels.shared_prefix_attention import cases as shared_prefix_attention

PAGE = 16
SEQUENCES = 8
PREFIX, TAIL = 1024, 64
# (cached rows, (first sequence, one after the last)) of each node; all are whole pages.
FLAT = ((PREFIX, (0, SEQUENCES)), *((TAIL, (i, i + 1)) for i in range(SEQUENCES)))
TREE = (
    (PREFIX, (0, SEQUENCES)),
    *((256, (i, i + 4)) for i in (0, 4)),
    *((64, (i, i + 2)) for i in range(0, SEQUENCES, 2)),
    *((TAIL, (i, i + 1)) for i in range(SEQUENCES)),
)


def trials(context: Context, quick: bool) -> Iterator[Trial]:
    """Trials of decode and inspection over a paged cache, then of decode over shared prefixes."""
    models = (TINY, QWEN_3B) if quick else (TINY, QWEN_3B, QWEN_7B, MULTI_HEAD)
    for model in models:
        inspected = 17 if model is TINY else 261
        yield paged(context, model, "decode", 1, PREFIX + TAIL)
        yield paged(context, model, "inspect", inspected, 600 + inspected)
    for model in models:
        yield shared(context, model, "flat", FLAT)
        yield shared(context, model, "tree", TREE)


def paged(
    context: Context, model: Model, kind: str, new: int, cached: int, sequences: int = SEQUENCES
) -> Trial:
    """A trial of paged_attention: ``cached`` rows in each sequence, of which ``new`` are new."""
    case = paged_attention.make(
        f"{model.name} {kind} {sequences} × {new} of {cached:,}",
        [(new, cached)] * sequences,
        model.heads,
        model.d_h,
        page_size=PAGE,
    )

    def entries(arguments: Mapping[str, Any]) -> list[Entry]:
        gather = partial(_gather, arguments, new, cached)
        dense = gather()
        return [
            *implementations(case.op, context.device, partial(call, case.op, arguments)),
            Entry("SDPA, gathered", lambda: gather().sdpa(), baseline=True),
            Entry("SDPA, dense", dense.sdpa, baseline=True),
            compiled("flex, dense", dense.flex(), context),
        ]

    return _trial(context, case, (sequences * cached, sequences * new), model, entries, new == 1)


def shared(
    context: Context,
    model: Model,
    kind: str,
    nodes: Sequence[tuple[int, tuple[int, int]]],
    sequences: int = SEQUENCES,
) -> Trial:
    """A trial of shared_prefix_attention with one new row in each sequence."""
    length = sum(rows for rows, (first, end) in nodes if first == 0)
    case = shared_prefix_attention.make(
        f"{model.name} {kind} {sequences} × {length:,}",
        nodes,
        sequences,
        model.heads,
        model.d_h,
        page_size=PAGE,
    )

    def entries(arguments: Mapping[str, Any]) -> list[Entry]:
        same = _own_pages(arguments, nodes, length, sequences)
        dense = _gather(same, 1, length)
        made = implementations(case.op, context.device, partial(call, case.op, arguments))
        for name, pages in (("same pages", same), ("copies", dense.paged(PAGE))):
            made.append(best_paged(context.device, f"paged, {name}", pages))
        return [*made, Entry("SDPA, dense", dense.sdpa, baseline=True)]

    cached = sum(rows for rows, _ in nodes)
    return _trial(context, case, (cached, sequences), model, entries, nodes is FLAT)


def _trial(
    context: Context,
    case: Case,
    rows: tuple[int, int],
    model: Model,
    entries: Callable[[Mapping[str, Any]], list[Entry]],
    charted: bool,
) -> Trial:
    """A trial of ``rows`` (cached, new); ``entries`` makes its entries from arguments."""
    (heads, kv_heads), (cached, new) = model.heads, rows

    def prepare() -> Prepared:
        arguments = converted(case.arguments(context.dtype), context.device)
        return Prepared(
            partial(_expected, case.op, arguments),
            entries(arguments),
            lambda: entries(copied(arguments)),
        )

    return Trial(
        op=case.op,
        name=case.name,
        dtype=context.dtype_name,
        shape=case.shape,
        flops=case.flops,
        bytes=context.dtype.itemsize * 2 * model.d_h * (cached * kv_heads + new * heads),
        tolerance=TOLERANCE[case.op][context.dtype],
        prepare=prepare,
        plots=("ratios",) if charted else (),
    )


def best_paged(device: str, name: str, arguments: Mapping[str, Any]) -> Entry:
    """An entry for the best implementation of paged_attention, a baseline for the shared one."""
    run = partial(call, "paged_attention", arguments)
    sound = (e for e in implementations("paged_attention", device, run) if not e.because)
    best = next(entry for entry in sound if not entry.optional)
    return Entry(name, run, best.within, baseline=True)


def _own_pages(
    arguments: Mapping[str, Any],
    nodes: Sequence[tuple[int, tuple[int, int]]],
    length: int,
    sequences: int,
) -> dict[str, Any]:
    """Arguments of paged_attention in which each sequence lists the pages of all its nodes."""
    table = arguments["page_table"]
    lists = [
        torch.cat(
            [
                table[number, : rows // PAGE]
                for number, (rows, (first, end)) in enumerate(nodes)
                if first <= i < end
            ]
        )
        for i in range(sequences)
    ]
    cache = {name: arguments[name] for name in ("query", "key_pages", "value_pages")}
    return cache | {
        "page_table": torch.stack(lists),
        "cu_seqlens": torch.arange(sequences + 1, device=table.device).int(),
        "kv_lens": torch.full((sequences,), length, device=table.device).int(),
    }


def _gather(arguments: Mapping[str, Any], new: int, cached: int) -> peers.Dense:
    """The sequences of paged_attention's arguments, gathered from their pages."""
    names = ("query", "key_pages", "value_pages", "page_table")
    cache = {name: arguments[name] for name in names}
    return peers.Dense.gather(**cache, new=new, cached=cached)


def _expected(op: str, arguments: Mapping[str, Any]) -> Tensor:
    """The result in float64."""
    return call(op, converted(arguments, torch.float64))
