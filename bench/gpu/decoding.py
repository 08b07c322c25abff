"""Where a step's time goes: sequences, graphs, prefixes, the tower; what must be compiled first."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from bench.gpu.context import Context, Row, local, spread
from bench.gpu.efficiency import pictures, tower_seconds
from bench.gpu.worlds import row_bytes, weight_bytes
from bench.suites.engine.prompts import World
from retrv_engine import EngineConfig, LocalEngine, Request
from retrv_engine.sharing import SHARED_ROWS

ROUNDS = 2  # that steps are timed in
PROFILED = 10  # steps
BEFORE = 4  # tokens that each sequence has written before steps are timed


def run(context: Context, name: str, part: str) -> Iterator[Row]:
    """Steps eager and replayed, prefixes shared and not, pictures."""
    scale, world = context.scale, context.world(name)
    for graphs in (True, False):
        for count in scale.sequences:
            row: Row = {
                "part": part,
                "kind": "step",
                "model": name,
                "sequences": count,
                "prompt": scale.prompt,
                "form": "replayed" if graphs else "eager",
            }
            requests = [_text(context, world, i, scale.prompt, count) for i in range(count)]
            yield context.measured(
                row, partial(_steps, context, world, requests, {"graphs": graphs})
            )
    for count, rows in scale.shared:
        for form, least in (("one prefix, read once", 1), ("one prefix, read by each", 2**60)):
            row = {
                "part": part,
                "kind": "step",
                "model": name,
                "sequences": count,
                "prompt": rows,
                "form": form,
            }
            requests = [_text(context, world, 0, rows, count)] * count
            with patch.dict(SHARED_ROWS, {context.device.kind: least}):
                yield context.measured(row, partial(_steps, context, world, requests, {}))
    yield from _tower(context, world, part)


def _text(context: Context, world: World, seed: int, rows: int, count: int) -> Request:
    """A prompt of words that writes more than is timed, and while the others are read."""
    chunk = EngineConfig().on(context.device.kind).chunk_rows
    assert chunk is not None
    reading = -(-count * rows // chunk)
    tokens = BEFORE + (ROUNDS + 1) * context.scale.steps + 4 * PROFILED + reading
    return world.text(seed, rows, tokens)


def _steps(
    context: Context, world: World, requests: Sequence[Request], settings: dict[str, Any]
) -> Row:
    """Seconds of a step in which every sequence decodes; a profile of others, which are slower."""
    scale, count = context.scale, len(requests)
    tokens = requests[0].sampling.max_reasoning_tokens
    rows = count * (len(requests[0].prompt) + tokens + 8)
    began = time.perf_counter()
    with compiles() as made, local(context, world, requests, rows, **settings) as engine:
        ready, at_start = time.perf_counter() - began, len(made)
        handles = [engine.submit(request) for request in requests]
        began = time.perf_counter()
        _until_decoding(engine, count)
        prefill = time.perf_counter() - began
        before = engine.stats().seconds
        samples = [
            context.device.seconds(lambda: _take(engine, scale.steps, count)) / scale.steps
            for _ in range(ROUNDS)
        ]
        after = engine.stats().seconds
        steps = min(PROFILED, scale.steps)
        profiled = context.device.profile(lambda: _take(engine, steps, count))
        for handle in handles:
            handle.cancel()
        while engine.step():
            pass
    seconds = spread(samples)
    found = {
        "seconds": seconds,
        "prefill": prefill,
        "start": ready,
        "compiled_at_start": at_start,
        "compiled": len(made),
        # Of a step that nobody profiles: a profiler takes the host's time, hardly the device's.
        "busy": profiled.busy * profiled.seconds / steps / seconds["median"],
        "launches": profiled.launches / steps,
        "host_launches": profiled.host / steps,
        "profiled": profiled.seconds / steps,
        "phases": {name: (after[name] - before[name]) / (ROUNDS * scale.steps) for name in after},
        "top": profiled.top,
    }
    rate = max(
        (context.ceilings[name]["median"] for name in _MEMORY & {*context.ceilings}), default=0
    )
    if rate:
        found["floor"] = least_bytes(context, world, requests) / rate
    return found


_MEMORY = {"read", "copy"}


def least_bytes(context: Context, world: World, requests: Sequence[Request]) -> int:
    """What a step must read: weights, and cached rows at half time, a shared prompt's once."""
    prompts = {id(request): len(request.prompt) for request in requests}
    written = len(requests) * (BEFORE + ROUNDS * context.scale.steps // 2)
    return weight_bytes(world.model) + (sum(prompts.values()) + written) * row_bytes(world.model)


def _until_decoding(engine: LocalEngine, count: int) -> None:
    """Steps until all sequences have written some tokens."""
    decoded = 0
    while decoded < BEFORE:
        before = engine.stats().computed_rows
        if not engine.step():
            raise RuntimeError(f"{count} sequences never decoded together")
        decoded += engine.stats().computed_rows - before == count


def _take(engine: LocalEngine, steps: int, count: int) -> None:
    """Steps in each of which every sequence feeds one row."""
    before = engine.stats().computed_rows
    for _ in range(steps):
        engine.step()
    rows = engine.stats().computed_rows - before
    if rows != steps * count:
        raise RuntimeError(f"{rows} rows in {steps} steps of {count} sequences")


@contextmanager
def compiles() -> Iterator[list[str]]:
    """Names of Triton kernels that are compiled inside, or read from its cache on disk."""
    made: list[str] = []
    try:
        from triton import knobs
    except ImportError:
        yield made
        return

    def heard(*, src: Any, **_: Any) -> None:
        made.append(getattr(src, "name", str(src)))

    before, knobs.compilation.listener = knobs.compilation.listener, heard
    try:
        yield made
    finally:
        knobs.compilation.listener = before


def _tower(context: Context, world: World, part: str) -> Iterator[Row]:
    count, grids = context.scale.pictures
    for grid in grids:
        row: Row = {
            "part": part,
            "kind": "tower",
            "model": world.name,
            "pictures": count,
            "patches": list(grid),
        }

        @torch.inference_mode()
        def measure(grid: tuple[int, int] = grid) -> Row:
            seconds = tower_seconds(context, world, *pictures(world, count, grid))
            return {"seconds": spread(seconds)}

        yield context.measured(row, measure)
