"""Rates of the machine, measured at full clock; everything else is compared with them."""

from __future__ import annotations

from collections.abc import Iterator

from bench import machine
from bench.gpu.context import Context, Row


def run(context: Context, name: str, part: str) -> Iterator[Row]:
    """Yields one row and keeps the rates in the context."""
    context.device.warm()
    probe = machine.Probe(context.device.kind)
    context.repeat(probe.measure, 2, 5)
    context.ceilings = probe.ceilings()
    yield {"part": part, "kind": "ceilings", "ceilings": context.ceilings}
