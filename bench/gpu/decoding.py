"""Time of a decode step by sequences, graphs and shared prefixes; time of the vision tower."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from bench.gpu.context import Context, Row, local_engine, spread
from bench.gpu.efficiency import pictures, tower_seconds
from bench.gpu.models import row_bytes, weight_bytes
from bench.suites.engine.workload import Workload
from retrv_engine import EngineConfig, LocalEngine, Request
from retrv_engine.sharing import SHARED_ROWS

ROUNDS = 2  # rounds in which steps are timed
PROFILED = 10  # steps under the profiler
BEFORE = 4  # steps with all sequences decoding before steps are timed


def run(context: Context, name: str, part: str) -> Iterator[Row]:
    """Yields rows of steps (replayed and eager, prefix shared or not) and of the vision tower."""
    scale, work = context.scale, context.workload(name)
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
            requests = [_text(context, work, i, scale.prompt, count) for i in range(count)]
            yield context.measured(
                row, partial(_steps, context, work, requests, {"graphs": graphs})
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
            requests = [_text(context, work, 0, rows, count)] * count
            with patch.dict(SHARED_ROWS, {context.device.kind: least}):
                yield context.measured(row, partial(_steps, context, work, requests, {}))
    yield from _tower(context, work, part)


def _text(context: Context, work: Workload, seed: int, rows: int, count: int) -> Request:
    """A text prompt with enough tokens to last through the others' prefill and all timed steps."""
    chunk = EngineConfig().on(context.device.kind).chunk_rows
    assert chunk is not None
    reading = -(-count * rows // chunk)
    tokens = BEFORE + (ROUNDS + 1) * context.scale.steps + 4 * PROFILED + reading
    return work.text(seed, rows, tokens)


def _steps(
    context: Context, work: Workload, requests: Sequence[Request], settings: dict[str, Any]
) -> Row:
    """Seconds of a step in which every sequence decodes; then a profile of further steps."""
    scale, count = context.scale, len(requests)
    tokens = requests[0].sampling.max_reasoning_tokens
    rows = count * (len(requests[0].prompt) + tokens + 8)
    began = time.perf_counter()
    with (
        compiled_kernels() as compiled,
        local_engine(context, work, requests, rows, **settings) as engine,
    ):
        ready, at_start = time.perf_counter() - began, len(compiled)
        handles = [engine.submit(request) for request in requests]
        began = time.perf_counter()
        _until_decoding(engine, count)
        prefill = time.perf_counter() - began
        before = engine.stats().seconds
        samples = [
            context.device.seconds(lambda: _run_steps(engine, scale.steps, count)) / scale.steps
            for _ in range(ROUNDS)
        ]
        after = engine.stats().seconds
        steps = min(PROFILED, scale.steps)
        profiled = context.device.profile(lambda: _run_steps(engine, steps, count))
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
        "compiled": len(compiled),
        # Relative to an unprofiled step: a profiler slows the host, hardly the device.
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
        found["floor"] = least_bytes(context, work, requests) / rate
    return found


_MEMORY = {"read", "copy"}


def least_bytes(context: Context, work: Workload, requests: Sequence[Request]) -> int:
    """Bytes that a step must read: weights and the rows cached half-way; a shared prompt once."""
    prompts = {id(request): len(request.prompt) for request in requests}
    written = len(requests) * (BEFORE + ROUNDS * context.scale.steps // 2)
    return weight_bytes(work.model) + (sum(prompts.values()) + written) * row_bytes(work.model)


def _until_decoding(engine: LocalEngine, count: int) -> None:
    """Runs steps until all sequences have decoded together ``BEFORE`` times."""
    decoded = 0
    while decoded < BEFORE:
        before = engine.stats().computed_rows
        if not engine.step():
            raise RuntimeError(f"{count} sequences never decoded together")
        decoded += engine.stats().computed_rows - before == count


def _run_steps(engine: LocalEngine, steps: int, count: int) -> None:
    """Runs steps and checks that every sequence fed one row in each."""
    before = engine.stats().computed_rows
    for _ in range(steps):
        engine.step()
    rows = engine.stats().computed_rows - before
    if rows != steps * count:
        raise RuntimeError(f"{steps} steps of {count} sequences computed {rows} rows")


@contextmanager
def compiled_kernels() -> Iterator[list[str]]:
    """Collects names of Triton kernels compiled inside, or read from Triton's cache on disk."""
    names: list[str] = []
    try:
        from triton import knobs
    except ImportError:
        yield names
        return

    def record(*, src: Any, **_: Any) -> None:
        names.append(getattr(src, "name", str(src)))

    before, knobs.compilation.listener = knobs.compilation.listener, record
    try:
        yield names
    finally:
        knobs.compilation.listener = before


def _tower(context: Context, work: Workload, part: str) -> Iterator[Row]:
    count, grids = context.scale.pictures
    for grid in grids:
        row: Row = {
            "part": part,
            "kind": "tower",
            "model": work.name,
            "pictures": count,
            "patches": list(grid),
        }

        @torch.inference_mode()
        def measure(grid: tuple[int, int] = grid) -> Row:
            seconds = tower_seconds(context, work, *pictures(work, count, grid))
            return {"seconds": spread(seconds)}

        yield context.measured(row, measure)
