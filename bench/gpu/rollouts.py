"""Groups of sampled rollouts over one compressed prompt: the embedded engine and transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from bench.gpu.context import Context, Row, local_engine, run_local, run_plain, spread
from bench.gpu.efficiency import request, rows_of
from bench.suites.engine.workload import Workload
from retrv_engine import Request
from retrv_engine.plain import embed_pieces

TEMPERATURE, TOP_P = 0.7, 0.95


def run(context: Context, name: str, part: str) -> Iterator[Row]:
    """Yields tokens per second by group size; only tokens of reasoning are counted."""
    shape = context.scale.shapes[0]
    work = context.workload(name, shape)
    for count in context.scale.rollouts:
        one = request(context, work, shape, False, 0)
        group = [_sampled(one, seed) for seed in range(count)]
        rows = count * rows_of(context, one, shape, False)
        for form, measure in (
            ("ours", partial(_ours, context, work, group, rows)),
            ("transformers, generate()", partial(_generate, context, work, group)),
            ("transformers, our plain engine", partial(_plain, context, work, group)),
        ):
            row: Row = {
                "part": part,
                "kind": "rollouts",
                "model": name,
                "form": form,
                "sequences": count,
                "candidates": shape.candidates,
            }
            yield context.measured(row, measure)


def _sampled(one: Request, seed: int) -> Request:
    sampling = dataclasses.replace(one.sampling, temperature=TEMPERATURE, top_p=TOP_P, seed=seed)
    return dataclasses.replace(one, sampling=sampling)


def _ours(context: Context, work: Workload, group: Sequence[Request], rows: int) -> Row:
    with local_engine(context, work, group, rows) as engine:
        return _counted(context, lambda: run_local(context, engine, group)["total"], group, 2)


def _plain(context: Context, work: Workload, group: Sequence[Request]) -> Row:
    return _counted(context, lambda: run_plain(context, work, group)["total"], group, 1)


@torch.inference_mode()
def _generate(context: Context, work: Workload, group: Sequence[Request]) -> Row:
    """The backbone's own ``generate`` with the same prompt rows and number of tokens."""
    pieces = [*group[0].prompt, work.tokens.think_start]
    embeds, _, _ = embed_pieces(work.model, pieces, 0)
    batch = embeds.expand(len(group), -1, -1)
    tokens = group[0].sampling.max_reasoning_tokens
    options: dict[str, Any] = dict(do_sample=True, temperature=TEMPERATURE, top_p=TOP_P, top_k=0)

    def call() -> None:
        found = work.model.backbone.generate(
            inputs_embeds=batch,
            attention_mask=torch.ones(batch.shape[:2], dtype=torch.long, device=batch.device),
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            **options,
        )
        if found.shape[-1] < tokens:
            raise RuntimeError(f"generate() gave {found.shape[-1]} tokens instead of {tokens}")

    return _counted(context, lambda: context.device.seconds(call), group, 1)


def _counted(
    context: Context, call: Callable[[], float], group: Sequence[Request], least: int
) -> Row:
    """Seconds and tokens per second of ``call``, after a warm-up run."""
    call()
    seconds = spread(context.repeat(call, least, 5))
    tokens = len(group) * group[0].sampling.max_reasoning_tokens
    return {"seconds": seconds, "tokens_a_second": tokens / seconds["median"]}
