"""The parts, most valuable first, and the process that measures them."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from bench.device import Device
from bench.gpu import ceilings, decoding, efficiency, kernels, rollouts
from bench.gpu.context import Context, Row
from bench.gpu.models import Scale

START = 90.0  # seconds that a process may take to import everything
GRACE = 20.0  # seconds that a part may overrun its time before it is killed
LEAST = 3.0  # seconds that must be left for a part to be started


@dataclass(frozen=True)
class Part:
    """Measurements that share a time limit.

    Args:
        share: weight of the part when the time left is divided among the parts left.
        run: function that yields each row as soon as it is measured.
        model: index into the scale's models, None if the part needs none.
    """

    name: str
    share: float
    run: Callable[[Context, str, str], Iterator[Row]]
    model: int | None = None


PARTS = (
    Part("ceilings", 10, ceilings.run),
    Part("efficiency-3b", 85, efficiency.run, 0),
    Part("steps-3b", 60, decoding.run, 0),
    Part("rollouts-3b", 30, rollouts.run, 0),
    Part("kernels", 70, kernels.run),
    Part("efficiency-7b", 60, efficiency.run, 1),
    Part("steps-7b", 20, decoding.run, 1),
)


@dataclass
class PartEnd:
    """How a part ended: "done", "failed" or "left out", and why; ``share``, ``took`` in seconds."""

    name: str
    state: str
    note: str = ""
    share: float = 0.0
    took: float = 0.0


def measure(
    parts: Sequence[Part],
    kind: str,
    quick: bool,
    seconds: float,
    keep: Callable[[Row | PartEnd], None],
) -> None:
    """Runs parts within their shares of the time; passes each row and each end to ``keep``.

    A separate process measures the parts one after another. After a failed part a new process is
    started, because the old one may have lost the device.
    """
    end = time.monotonic() + seconds
    worker: Worker | None = None
    known: Mapping[str, Any] = {}
    try:
        for number, part in enumerate(parts):
            left = end - time.monotonic()
            if left < LEAST:
                keep(PartEnd(part.name, "left out", "the time was up"))
                continue
            share = left * part.share / sum(one.share for one in parts[number:])
            began, state, note = time.monotonic(), "done", ""
            try:
                worker = worker or Worker(kind, quick)
                for row in worker.rows(part, share, known):
                    known = row.get("ceilings", known)
                    keep(row)
            except (EOFError, OSError, TimeoutError, RuntimeError) as error:
                state, note = "failed", str(error) or type(error).__name__
                if worker is not None:
                    note += worker.kill()
                    worker = None
            took = round(time.monotonic() - began, 1)
            keep(PartEnd(part.name, state, note, round(share, 1), took))
    finally:
        if worker is not None:
            worker.kill()


class Worker:
    """A process that measures parts one by one."""

    def __init__(self, kind: str, quick: bool) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._ours, theirs = spawn.Pipe()
        # Not a daemon, which could not start compilers as child processes.
        self._process = spawn.Process(target=_measure_parts, args=(theirs, kind, quick))
        self._process.start()
        theirs.close()
        try:
            self._next(START)
        except (EOFError, TimeoutError):
            self.kill()
            raise

    def rows(self, part: Part, seconds: float, known: Mapping[str, Any]) -> Iterator[Row]:
        """Yields the rows of a part.

        Raises:
            EOFError: the process has died.
            TimeoutError: the part overran its time by more than ``GRACE``.
            RuntimeError: the part raised; the message is its error.
        """
        self._ours.send((part.name, seconds, known))
        end = time.monotonic() + seconds + GRACE
        while True:
            what, value = self._next(end - time.monotonic())
            if what == "row":
                yield value
            elif value:
                raise RuntimeError(value)
            else:
                return

    def kill(self) -> str:
        """Ends the process; returns its exit status in words if it had ended by itself."""
        self._process.join(1)
        code = self._process.exitcode
        self._process.kill()
        self._process.join()
        return "" if code is None else f" (exit status {code})"

    def _next(self, seconds: float) -> tuple[str, Any]:
        if not self._ours.poll(max(0.0, seconds)):
            raise TimeoutError("killed: it overran its time")
        try:
            return self._ours.recv()
        except EOFError:
            raise EOFError("the process that measures has died") from None


def _measure_parts(connection: Connection, kind: str, quick: bool) -> None:
    """The loop of the process: measures parts by name until it is killed."""
    torch.set_grad_enabled(False)
    if quick and kind == "cpu":
        torch.set_num_threads(1)  # at this size more threads only wait for each other
    context = Context(Device.of(kind), Scale.quick() if quick else Scale())
    by_name = {part.name: part for part in PARTS}
    connection.send(("ready", None))
    while True:
        name, seconds, known = connection.recv()
        reason = measure_part(context, by_name[name], seconds, known, connection.send)
        connection.send(("end", reason))


def measure_part(
    context: Context,
    part: Part,
    seconds: float,
    known: Mapping[str, Any],
    send: Callable[[tuple[str, Row]], None],
) -> str:
    """Measures a part and sends its rows; returns why it failed, "" if it did not."""
    context.ceilings = known
    context.begin(seconds)
    model = "" if part.model is None else context.scale.models[part.model]
    if not model:
        context.free()
    try:
        for row in part.run(context, model, part.name):
            send(("row", row))
        context.device.synchronize()  # a broken device raises
    except Exception as error:
        lines = str(error).splitlines() or [""]
        return f"{type(error).__name__}: {lines[0][:200]}"
    return ""
