"""A request on its way through the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from retrv_engine.base import Handle
from retrv_engine.generation import Generation
from retrv_engine.request import Output, Spent
from retrv_engine.sglang.wire_format import WirePrompt


@dataclass(eq=False)
class ActiveRequest:
    """A submitted request that has not ended.

    Attributes:
        prompt: all rows so far, as they are sent.
        reported: number of tokens that the handle has.
        cached_rows: rows that the first call found in the cache; None before.
        computed_rows: rows that the server has computed.
        prefilled: event to set once the server has prefilled the prompt; others may wait for it.
        timings: seconds of each phase; empty while the request is queued.
    """

    generation: Generation
    prompt: WirePrompt
    handle: Handle[Output]
    priority: int
    submitted: float
    reported: int = 0
    cached_rows: int | None = None
    computed_rows: int = 0
    prefilled: asyncio.Event | None = None
    timings: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds the time that the context takes to a phase."""
        began = time.perf_counter()
        yield
        self.timings[phase] = self.timings.get(phase, 0.0) + time.perf_counter() - began

    def output(self) -> Output:
        """The generation's output, with counted rows and timings."""
        return replace(
            self.generation.output(),
            cached_rows=self.cached_rows or 0,
            computed_rows=self.computed_rows,
            timings=self.timings,
        )

    def spent(self) -> Spent:
        """What it has used so far."""
        generation = self.generation
        return Spent(
            len(generation.tokens),
            tuple(generation.inspected),
            generation.inspected_rows,
            self.cached_rows or 0,
            self.computed_rows,
            dict(self.timings),
        )
