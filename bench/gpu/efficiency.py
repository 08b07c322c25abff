"""The paper's efficiency table: a request over full and over compressed tokens, time and memory.

Of K candidates whose features are ready; what the vision tower and the compressor take for them
stands in rows of its own. Memory is what is allocated at most, weights and key-value cache
included; the embedded engine's cache is as large as the request needs. Memory in which captured
steps compute is left out: PyTorch counts it as free between captures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

from bench.gpu.context import Context, Row, alike, local, ours, spread, theirs
from bench.gpu.worlds import Shape
from bench.suites.engine.prompts import INSTRUCTION, TASK, World
from retrv_engine import Request

QUERY = 64  # rows
KIND = "efficiency"


def run(context: Context, name: str, part: str) -> Iterator[Row]:
    """Rows of all shapes of a model, the most wanted first."""
    compressed: dict[tuple[int, int], Row] = {}  # of transformers, which no shape changes
    for shape in context.scale.shapes:
        world = context.world(name, shape)
        seen = (0, context.scale.inspections)
        wanted = [("ours, compressed", False, n) for n in reversed(seen)]
        wanted += [("ours, fast", False, -1), ("ours, full tokens", True, 0)]
        wanted += [("transformers, full tokens", True, 0)]
        wanted += [("transformers, compressed", False, n) for n in seen]
        written: dict[tuple[bool, int], list[int]] = {}
        for form, full, inspections in wanted:
            key = shape.candidates, inspections
            row: Row = {
                "part": part,
                "kind": KIND,
                "model": name,
                "form": form,
                "candidates": shape.candidates,
                "rows": shape.rows,
                "inspections": max(0, inspections),
            }
            known = compressed.get(key) if form == "transformers, compressed" else None
            if known is not None and inspections == 0:
                yield known | row
                continue
            made = request(context, world, shape, full, inspections)
            row = context.measured(row, _measure(context, world, form, made, full))
            tokens = row.pop("tokens", None)
            if tokens is not None:
                written.setdefault((full, inspections), tokens)
                row["alike"] = alike(tokens, written[full, inspections])
                row["written"] = len(tokens)
            if form == "transformers, compressed" and "total" in row:
                compressed[key] = row
            yield row
        yield encoding(context, world, shape, part)


def request(context: Context, world: World, shape: Shape, full: bool, inspections: int) -> Request:
    """A listwise request; of fast mode where ``inspections`` is -1."""
    tokens = context.scale.tokens if inspections >= 0 else 0
    return world.request(
        shape.rows, shape.candidates, full=full, tokens=tokens, inspections=max(0, inspections)
    )


def rows_of(context: Context, request: Request, shape: Shape, full: bool) -> int:
    """Rows that a request needs in a cache, an inspection's wrapper and the answer included."""
    each = shape.rows + 2 if full else 3
    written = context.scale.tokens + 8
    looks = request.sampling.max_inspections * (shape.rows + 4)
    return INSTRUCTION + TASK + shape.candidates * each + written + looks


def _measure(
    context: Context, world: World, form: str, made: Request, full: bool
) -> Callable[[], Row]:
    """What measures a form: a run that compiles, then those that count, and their peak."""
    device = context.device
    shape = Shape(len(made.labels), world.rows, world.width)

    def measure() -> Row:
        weights = device.held()
        if form.startswith("ours"):
            rows = rows_of(context, made, shape, full)
            with local(context, world, [made], rows) as engine:
                ours(context, engine, [made])
                return counted(lambda: ours(context, engine, [made]), weights)
        sampling = dataclasses.replace(made.sampling, max_reasoning_tokens=2, max_inspections=0)
        theirs(context, world, [dataclasses.replace(made, sampling=sampling)])  # compiles nothing
        return counted(lambda: theirs(context, world, [made]), weights, least=1)

    def counted(call: Callable[[], Row], weights: int, least: int = 2) -> Row:
        runs: list[Row] = []
        peak = device.peak(lambda: runs.extend(context.repeat(call, least)))
        return {
            "first": spread([run["first"] for run in runs]),
            "total": spread([run["total"] for run in runs]),
            "peak": peak,
            "above_weights": peak - weights,
            "tokens": runs[-1]["tokens"][0],
            "inspected": runs[-1]["inspected"],
        }

    return measure


def encoding(context: Context, world: World, shape: Shape, part: str) -> Row:
    """What stands before a request whose features are not ready: tower, then compressor.

    The patches are on the device already; the query has 64 rows.
    """
    count = shape.candidates
    high, wide = shape.rows // shape.width * 2, shape.width * 2
    row: Row = {
        "part": part,
        "kind": "encoding",
        "model": world.name,
        "candidates": count,
        "rows": shape.rows,
    }

    @torch.inference_mode()
    def measure() -> Row:
        pixels, grid = pictures(world, count, (high, wide))
        tower = tower_seconds(context, world, pixels, grid)
        features = world.model.encode_pictures(pixels, grid)
        query = features[:QUERY]
        packed = torch.cat([features, query])
        # On the CPU, as they are in a request: lengths are read there.
        offsets = torch.tensor([0, *[shape.rows] * count, len(query)]).cumsum(0)
        candidate = torch.arange(count)
        asked = torch.full_like(candidate, count)

        def compress() -> Any:
            content = world.model.icm.content(packed, offsets)
            return content, world.model.icm.relation(packed, offsets, candidate, asked)

        compress()
        seconds = context.repeat(lambda: context.device.seconds(compress))
        peak = context.device.peak(lambda: (world.model.encode_pictures(pixels, grid), compress()))
        return {"tower": spread(tower), "compression": spread(seconds), "peak": peak}

    return context.measured(row, measure)


def pictures(world: World, count: int, grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches of random pictures ``[p, patch_dim]``; their grids ``[count, 3]`` on the CPU."""
    vision = world.model.config.backbone_config.vision_config
    depth = 3 * vision.temporal_patch_size * vision.patch_size**2
    device = world.model.device
    pixels = torch.randn(count * grid[0] * grid[1], depth, device=device, dtype=world.model.dtype)
    return pixels, torch.tensor([[1, *grid]] * count)


def tower_seconds(
    context: Context, world: World, pixels: torch.Tensor, grid: torch.Tensor
) -> list[float]:
    """Seconds of the vision tower for packed pictures."""

    def call() -> Any:
        return world.model.encode_pictures(pixels, grid)

    call()
    return context.repeat(lambda: context.device.seconds(call))
