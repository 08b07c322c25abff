"""What every part of the benchmark uses: device, scale, time limit, and one model at a time."""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any
from unittest.mock import patch

from bench.device import Device
from bench.gpu import models
from bench.gpu.models import Scale, Shape
from bench.suites.engine.workload import Workload
from retrv_engine import EngineConfig, LocalEngine, Output, Request, plain
from retrv_engine.warming import LONG

Row = dict[str, Any]


class Context:
    """State of the process that measures.

    Attributes:
        ceilings: measured rates of the machine with quartiles; empty before they are measured.
    """

    def __init__(self, device: Device, scale: Scale) -> None:
        self.device, self.scale = device, scale
        self.ceilings: Mapping[str, Any] = {}
        self._end = float("inf")
        self._workload: Workload | None = None

    def begin(self, seconds: float) -> None:
        """Starts the clock of a part that may take ``seconds``."""
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that the part has left."""
        return self._end - time.monotonic()

    def workload(self, name: str, shape: Shape | None = None) -> Workload:
        """The model of that name; frees the one held before if that was another."""
        if self._workload is None or self._workload.name != name:
            self.free()
            self._workload = models.make(name, self.device)
        if shape is None:
            return self._workload
        return dataclasses.replace(self._workload, rows=shape.rows, width=shape.width)

    def free(self) -> None:
        """Frees the model and its memory."""
        self._workload = None
        self.device.free_unused()
        # Only libraries are left: collecting over them took 0.3 s of every measurement.
        gc.freeze()

    def measured(self, row: Row, measure: Callable[[], Row]) -> Row:
        """The row with what was measured, or with a note why nothing was.

        An error, out of memory included, fails this row only; the next measurement runs.
        """
        if self.left <= 0:
            return row | {"note": "left out: the part's time was up"}
        began = time.monotonic()
        try:
            row = row | measure()
        except Exception as error:
            lines = str(error).splitlines() or [""]
            row = row | {"note": f"{type(error).__name__}: {lines[0][:200]}", "failed": True}
        self.device.free_unused()
        return row | {"took": round(time.monotonic() - began, 2)}

    def repeat(self, call: Callable[[], Any], least: int = 2, most: int = 7) -> list[Any]:
        """Results of at least ``least`` calls, and up to ``most`` within the scale's seconds."""
        found: list[Any] = []
        began = time.monotonic()
        while len(found) < least or (
            len(found) < most and time.monotonic() - began < min(self.scale.seconds, self.left)
        ):
            found.append(call())
        return found


def spread(samples: Sequence[float]) -> Row:
    """Median, minimum and maximum."""
    return {
        "median": statistics.median(samples),
        "least": min(samples),
        "most": max(samples),
        "rounds": len(samples),
    }


@contextmanager
def local_engine(
    context: Context, work: Workload, requests: Sequence[Request], rows: int, **settings: Any
) -> Iterator[LocalEngine]:
    """An embedded engine with a cache of about ``rows`` rows, closed and freed at the end.

    It is warmed for these requests as one batch, with contexts of up to 512 rows; steps over longer
    contexts are captured when they first occur.
    """
    config = EngineConfig(max_sequences=max(1, len(requests)), **settings)
    rows = max(rows, LONG + 32)  # for the requests that the engine warms itself with
    pages = -(-rows // config.page_size) + 2 * len(requests) + 8
    size = pages * config.page_size * models.row_bytes(work.model)
    engine = work.local(dataclasses.replace(config, cache_bytes=size))
    try:
        samplings = {(s.temperature, s.top_p): s for s in (one.sampling for one in requests)}
        engine.warm([*samplings.values()], [len(requests)])
        yield engine
    finally:
        engine.close()
        del engine
        context.device.free_unused()


def run_local(context: Context, engine: LocalEngine, requests: Sequence[Request]) -> Row:
    """Runs the embedded engine from an empty cache: seconds to the first token and in total."""
    engine.flush()
    context.device.synchronize()
    began = time.perf_counter()
    handles = [engine.submit(request) for request in requests]
    next(handles[0].tokens())
    first = time.perf_counter() - began
    outputs = [handle.result() for handle in handles]
    return _ran(outputs, first, time.perf_counter() - began)


def run_plain(context: Context, work: Workload, requests: Sequence[Request]) -> Row:
    """The same with transformers: the model's own modules, SDPA, a contiguous cache."""
    engine = work.plain(len(requests))
    firsts: list[float] = []
    decode = plain.decode

    def timed(*arguments: Any) -> Any:
        logits = decode(*arguments)
        if not firsts:
            context.device.synchronize()
            firsts.append(time.perf_counter())
        return logits

    context.device.synchronize()
    began = time.perf_counter()
    with patch.object(plain, "decode", timed):
        outputs = engine.generate(requests)
    context.device.synchronize()
    return _ran(outputs, firsts[0] - began, time.perf_counter() - began)


def _ran(outputs: Sequence[Output], first: float, total: float) -> Row:
    tokens = [list(output.tokens) for output in outputs]
    inspected = sum(len(output.inspected) for output in outputs)
    return {"first": first, "total": total, "tokens": tokens, "inspected": inspected}


def common_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of equal tokens before the first that differs."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
