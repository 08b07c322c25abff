"""The paper's efficiency table: time and memory of a request over full and compressed tokens.

Features of the K candidates are computed before; the vision tower and the compressor have rows of
their own. Memory is the peak allocated, weights and key-value cache included; the embedded engine's
cache is as large as the request needs. The working memory of captured steps is not counted, because
PyTorch reports it as free between captures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.gpu.context import (
    Context,
    Row,
    common_tokens,
    local_engine,
    run_local,
    run_plain,
    spread,
)
from bench.gpu.models import Shape
from bench.suites.engine.workload import INSTRUCTION, TASK, Workload
from retrv_engine import Request

QUERY = 64  # rows
KIND = "efficiency"


def run(context: Context, name: str, part: str) -> Iterator[Row]:
    """Yields rows of all shapes of a model, the most important first."""
    compressed: dict[tuple[int, int], Row] = {}  # transformers' rows, which no shape changes
    for shape in context.scale.shapes:
        work = context.workload(name, shape)
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
            made = request(context, work, shape, full, inspections)
            row = context.measured(row, _measure(context, work, form, made, full))
            tokens = row.pop("tokens", None)
            if tokens is not None:
                written.setdefault((full, inspections), tokens)
                row["alike"] = common_tokens(tokens, written[full, inspections])
                row["written"] = len(tokens)
            if form == "transformers, compressed" and "total" in row:
                compressed[key] = row
            yield row
        yield encoding(context, work, shape, part)


def request(
    context: Context, work: Workload, shape: Shape, full: bool, inspections: int
) -> Request:
    """A listwise request, in fast mode if ``inspections`` is -1."""
    tokens = context.scale.tokens if inspections >= 0 else 0
    return work.request(
        shape.rows, shape.candidates, full=full, tokens=tokens, inspections=max(0, inspections)
    )


def rows_of(context: Context, request: Request, shape: Shape, full: bool) -> int:
    """Rows that a request needs in the cache, including inspection tags and the answer."""
    each = shape.rows + 2 if full else 3
    written = context.scale.tokens + 8
    looks = request.sampling.max_inspections * (shape.rows + 4)
    return INSTRUCTION + TASK + shape.candidates * each + written + looks


def _measure(
    context: Context, work: Workload, form: str, made: Request, full: bool
) -> Callable[[], Row]:
    """The measurement of a form: a warm-up run, then timed runs and their peak memory."""
    device = context.device
    shape = Shape(len(made.labels), work.rows, work.width)

    def measure() -> Row:
        weights = device.held()
        if form.startswith("ours"):
            rows = rows_of(context, made, shape, full)
            with local_engine(context, work, [made], rows) as engine:
                run_local(context, engine, [made])
                return counted(lambda: run_local(context, engine, [made]), weights)
        sampling = dataclasses.replace(made.sampling, max_reasoning_tokens=2, max_inspections=0)
        run_plain(
            context, work, [dataclasses.replace(made, sampling=sampling)]
        )  # two tokens: it compiles nothing
        return counted(lambda: run_plain(context, work, [made]), weights, least=1)

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


def encoding(context: Context, work: Workload, shape: Shape, part: str) -> Row:
    """Time of the vision tower and of the compressor, for a request without cached features.

    The patches are on the device already; the query has ``QUERY`` rows.
    """
    count = shape.candidates
    high, wide = shape.rows // shape.width * 2, shape.width * 2
    row: Row = {
        "part": part,
        "kind": "encoding",
        "model": work.name,
        "candidates": count,
        "rows": shape.rows,
    }

    @torch.inference_mode()
    def measure() -> Row:
        pixels, grid = pictures(work, count, (high, wide))
        tower = tower_seconds(context, work, pixels, grid)
        features = work.model.encode_pictures(pixels, grid)
        query = features[:QUERY]
        packed = torch.cat([features, query])
        # On the CPU, as in a request: lengths are read there.
        offsets = torch.tensor([0, *[shape.rows] * count, len(query)]).cumsum(0)
        candidate = torch.arange(count)
        asked = torch.full_like(candidate, count)

        def compress() -> Any:
            content = work.model.icm.content(packed, offsets)
            return content, work.model.icm.relation(packed, offsets, candidate, asked)

        compress()
        seconds = context.repeat(lambda: context.device.seconds(compress))
        peak = context.device.peak(lambda: (work.model.encode_pictures(pixels, grid), compress()))
        return {"tower": spread(tower), "compression": spread(seconds), "peak": peak}

    return context.measured(row, measure)


def pictures(
    work: Workload, count: int, grid: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches of random pictures ``[p, patch_dim]``, and their grids ``[count, 3]`` on the CPU."""
    vision = work.model.config.backbone_config.vision_config
    depth = 3 * vision.temporal_patch_size * vision.patch_size**2
    device = work.model.device
    pixels = torch.randn(count * grid[0] * grid[1], depth, device=device, dtype=work.model.dtype)
    return pixels, torch.tensor([[1, *grid]] * count)


def tower_seconds(context: Context, work: Workload, pixels: Tensor, grid: Tensor) -> list[float]:
    """Seconds of the vision tower for packed pictures."""

    def call() -> Any:
        return work.model.encode_pictures(pixels, grid)

    call()
    return context.repeat(lambda: context.device.seconds(call))
