"""What every part measures with: a device, a scale, a clock that runs out, one model at a time."""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from bench.device import Device
from bench.gpu import worlds
from bench.gpu.worlds import Scale, Shape
from bench.suites.engine.prompts import Paced, World
from retrv_engine import EngineConfig, LocalEngine, Output, PlainEngine, Request
from retrv_engine.warming import LONG

Row = dict[str, Any]


class Context:
    """State of the process that measures.

    Attributes:
        ceilings: rates of the machine once they have been measured, with quartiles.
    """

    def __init__(self, device: Device, scale: Scale) -> None:
        self.device, self.scale = device, scale
        self.ceilings: Mapping[str, Any] = {}
        self._end = float("inf")
        self._world: World | None = None

    def begin(self, seconds: float) -> None:
        """Gives a part so much time from now on."""
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that the part has left."""
        return self._end - time.monotonic()

    def world(self, name: str, shape: Shape | None = None) -> World:
        """A model by name; the one before is given up, where it is another."""
        if self._world is None or self._world.name != name:
            self.drop()
            self._world = worlds.make(name, self.device)
        if shape is None:
            return self._world
        return dataclasses.replace(self._world, rows=shape.rows, width=shape.width)

    def drop(self) -> None:
        """Gives the model up."""
        self._world = None
        self.device.rest()
        # What is left are libraries: to look through them took 0.3 s of every measurement.
        gc.freeze()

    def measured(self, row: Row, measure: Callable[[], Row]) -> Row:
        """A row with what was measured, or with the reason why nothing was.

        An error is of its row alone, also where memory is short; what comes next goes on.
        """
        if self.left <= 0:
            return row | {"note": "left out: the part's time was up"}
        began = time.monotonic()
        try:
            row = row | measure()
        except Exception as error:
            lines = str(error).splitlines() or [""]
            row = row | {"note": f"{type(error).__name__}: {lines[0][:200]}", "failed": True}
        self.device.rest()
        return row | {"took": round(time.monotonic() - began, 2)}

    def repeat(self, call: Callable[[], Any], least: int = 2, most: int = 7) -> list[Any]:
        """Results of calls: ``least`` at least, more while the scale's seconds last."""
        found: list[Any] = []
        began = time.monotonic()
        while len(found) < least or (
            len(found) < most and time.monotonic() - began < min(self.scale.seconds, self.left)
        ):
            found.append(call())
        return found


def spread(samples: Sequence[float]) -> Row:
    """Median and the extremes."""
    return {
        "median": statistics.median(samples),
        "least": min(samples),
        "most": max(samples),
        "rounds": len(samples),
    }


@contextmanager
def local(
    context: Context, world: World, requests: Sequence[Request], rows: int, **settings: Any
) -> Iterator[LocalEngine]:
    """An embedded engine whose cache holds ``rows`` rows for the requests, and no more to speak of.

    It is warm for these requests together and no others, and for contexts of 512 rows: steps of
    longer ones are captured as they come. It is given up at the end: the next one needs its memory.
    """
    config = EngineConfig(max_sequences=max(1, len(requests)), **settings)
    rows = max(rows, LONG + 32)  # of the engine's own requests, from which it gets warm
    pages = -(-rows // config.page_size) + 2 * len(requests) + 8
    size = pages * config.page_size * worlds.row_bytes(world.model)
    config = dataclasses.replace(config, cache_bytes=size)
    engine = LocalEngine(world.model, world.vocabulary, config, generation_type=Paced)
    try:
        samplings = {(s.temperature, s.top_p): s for s in (one.sampling for one in requests)}
        engine.warm([*samplings.values()], [len(requests)])
        yield engine
    finally:
        engine.close()
        del engine
        context.device.rest()


def ours(context: Context, engine: LocalEngine, requests: Sequence[Request]) -> Row:
    """One run from an empty cache: seconds to the first token and in all, and what was written."""
    engine.flush()
    context.device.synchronize()
    began = time.perf_counter()
    handles = [engine.submit(request) for request in requests]
    next(handles[0].tokens())
    first = time.perf_counter() - began
    outputs = [handle.result() for handle in handles]
    return _ran(outputs, first, time.perf_counter() - began)


def theirs(context: Context, world: World, requests: Sequence[Request]) -> Row:
    """The same by transformers: the model's own modules, SDPA, a contiguous cache."""
    engine = PlainEngine(world.model, world.vocabulary, len(requests), generation_type=Paced)
    firsts: list[float] = []
    decode = world.model.decode

    def timed(*arguments: Any) -> Any:
        logits = decode(*arguments)
        if not firsts:
            context.device.synchronize()
            firsts.append(time.perf_counter())
        return logits

    context.device.synchronize()
    began = time.perf_counter()
    with patch.object(world.model, "decode", timed):
        outputs = engine.generate(requests)
    context.device.synchronize()
    return _ran(outputs, firsts[0] - began, time.perf_counter() - began)


def _ran(outputs: Sequence[Output], first: float, total: float) -> Row:
    tokens = [list(output.tokens) for output in outputs]
    inspected = sum(len(output.inspected) for output in outputs)
    return {"first": first, "total": total, "tokens": tokens, "inspected": inspected}


def alike(mine: Sequence[int], other: Sequence[int]) -> int:
    """Tokens before the first that differs."""
    pairs = enumerate(zip(mine, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(mine), len(other)))
