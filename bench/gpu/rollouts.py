"""Groups of sampled sequences over one compressed prompt: ours beside transformers'."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from bench.gpu.context import Context, Row, local, ours, spread, theirs
from bench.gpu.efficiency import request, rows_of
from bench.suites.engine.prompts import World
from retrv_engine import Request
from retrv_engine.plain import embed_pieces

TEMPERATURE, TOP_P = 0.7, 0.95


def run(context: Context, name: str, part: str) -> Iterator[Row]:
    """Tokens a second of each group size; the tokens of reasoning are counted."""
    shape = context.scale.shapes[0]
    world = context.world(name, shape)
    for count in context.scale.rollouts:
        one = request(context, world, shape, False, 0)
        group = [_sampled(one, seed) for seed in range(count)]
        rows = count * rows_of(context, one, shape, False)
        for form, measure in (
            ("ours", partial(_ours, context, world, group, rows)),
            ("transformers, generate()", partial(_generate, context, world, group)),
            ("transformers, our plain engine", partial(_plain, context, world, group)),
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


def _ours(context: Context, world: World, group: Sequence[Request], rows: int) -> Row:
    with local(context, world, group, rows) as engine:
        return _counted(context, lambda: ours(context, engine, group)["total"], group, 2)


def _plain(context: Context, world: World, group: Sequence[Request]) -> Row:
    return _counted(context, lambda: theirs(context, world, group)["total"], group, 1)


@torch.inference_mode()
def _generate(context: Context, world: World, group: Sequence[Request]) -> Row:
    """The backbone's own ``generate``: the same rows for every sequence, as many tokens."""
    pieces = [*group[0].prompt, world.vocabulary.think_start]
    embeds, _, _ = embed_pieces(world.model, pieces, 0)
    batch = embeds.expand(len(group), -1, -1)
    tokens = group[0].sampling.max_reasoning_tokens
    options: dict[str, Any] = dict(do_sample=True, temperature=TEMPERATURE, top_p=TOP_P, top_k=0)

    def call() -> None:
        found = world.model.backbone.generate(
            inputs_embeds=batch,
            attention_mask=torch.ones(batch.shape[:2], dtype=torch.long, device=batch.device),
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            **options,
        )
        if found.shape[-1] < tokens:
            raise RuntimeError(f"{found.shape[-1]} tokens instead of {tokens}")

    return _counted(context, lambda: context.device.seconds(call), group, 1)


def _counted(
    context: Context, call: Callable[[], float], group: Sequence[Request], least: int
) -> Row:
    """After a run that compiles."""
    call()
    seconds = spread(context.repeat(call, least, 5))
    tokens = len(group) * group[0].sampling.max_reasoning_tokens
    return {"seconds": seconds, "tokens_a_second": tokens / seconds["median"]}
