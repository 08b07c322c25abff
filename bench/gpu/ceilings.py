"""What the machine can do: the rates that all else is compared with, on a clock that is awake."""

from __future__ import annotations

from collections.abc import Iterator

from bench import machine
from bench.gpu.context import Context, Row


def run(context: Context, name: str, part: str) -> Iterator[Row]:
    """One row; the context knows the rates from then on."""
    context.device.warm()
    probe = machine.Probe(context.device.kind)
    context.repeat(probe.measure, 2, 5)
    context.ceilings = probe.ceilings()
    yield {"part": part, "kind": "ceilings", "ceilings": context.ceilings}
