"""Runs one trial: checks each implementation against float64, then times all of them in rounds.

    for round in rounds:  for implementation in order rotated by round:  evict caches, time a call

Whatever slows the machine for a while slows a whole round, so ratios are taken within rounds. An
implementation that fails its check or cannot run is never timed. On a GPU a round replays a graph
of calls over several inputs (:mod:`bench.device`), and nothing is evicted.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import timer

from bench.device import Device
from bench.time_limit import time_limit
from retrv_kernels.cases import error_of

Result = Tensor | Sequence[Tensor]
ROUNDS = (3, 50)
"""Least and largest number of rounds, whatever the budget."""


@dataclass(frozen=True)
class Entry:
    """One implementation in a trial.

    Args:
        call: function that computes the result, from inputs made beforehand.
        within: function that makes the context of each call, such as a choice of kernels.
        baseline: whether the others' speeds are given relative to it.
        optional: whether being unable to run is noted instead of failing the trial.
        because: reason why it is not run here, "" if it is.
        like: name of the earlier entry whose result is expected; the trial's own if empty.
        compared: False if it computes something else on purpose, such as with rounded weights;
            it has no error then.
        counts: function that returns counts of the previous call by name, such as rows computed.
        before: function called before each call, not timed.
        limit: seconds that the first call, which compiles, may take; 0 for no limit.
    """

    name: str
    call: Callable[[], Result]
    within: Callable[[], AbstractContextManager[None]] = nullcontext
    baseline: bool = False
    optional: bool = False
    because: str = ""
    like: str = ""
    compared: bool = True
    counts: Callable[[], Mapping[str, int]] = dict
    before: Callable[[], None] = lambda: None
    limit: float = 0.0


@dataclass(frozen=True)
class Prepared:
    """A trial whose inputs are in memory.

    Args:
        expected: function that returns the right result, in float64 or from a reference.
        again: function that makes the entries again over a copy of the inputs; None if calls are
            timed one by one on a GPU too.
    """

    expected: Callable[[], Result]
    entries: Sequence[Entry]
    again: Callable[[], Sequence[Entry]] | None = None


@dataclass(frozen=True)
class Trial:
    """Inputs on which implementations are compared.

    Args:
        shape: sizes by name.
        flops, bytes: least operations and bytes of the computation, which bound its speed.
        tolerance: largest error allowed, relative to the largest expected value.
        prepare: function that makes the inputs; called when the trial starts.
        plots: sizes whose sweeps include the trial, and "ratios" for the chart of ratios.
        rounds: least number of rounds, for trials with long calls; ``ROUNDS[0]`` if None.
    """

    op: str
    name: str
    dtype: str
    shape: Mapping[str, int]
    flops: int
    bytes: int
    tolerance: float
    prepare: Callable[[], Prepared]
    plots: tuple[str, ...] = ()
    rounds: int | None = None


@dataclass(frozen=True)
class Suite:
    """Trials in the order in which they run, and notes on what is timed and what is left out."""

    trials: Sequence[Trial]
    notes: Sequence[str]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles over rounds."""

    median: float
    q1: float
    q3: float
    rounds: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        parts = [*samples, *samples[:1]] if len(samples) == 1 else samples
        q1, median, q3 = statistics.quantiles(parts, n=4, method="inclusive")
        return cls(median, q1, q3, len(samples))


@dataclass(frozen=True)
class Row:
    """Result of one implementation in one trial.

    Args:
        error: largest error, relative to the largest expected value; None if nothing was compared.
        note: reason why there is no time, empty if there is one.
        failed: whether it is wrong, or could not run although it is not optional.
        seconds: time of a call; None unless the check passed.
        ratios: by baseline, the baseline's time divided by this one's; above 1 is faster.
        counts: counts of the checked call.
        how: the way of timing, if it is not the usual one on the device.
    """

    implementation: str
    error: float | None = None
    note: str = ""
    failed: bool = False
    seconds: Spread | None = None
    ratios: Mapping[str, Spread] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    how: str = ""


def run(
    trial: Trial,
    budget: float,
    *,
    rounds: tuple[int, int] = ROUNDS,
    evict: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = timer,
    device: Device | None = None,
) -> list[dict[str, Any]]:
    """Checks and times every entry of a trial.

    Args:
        budget: seconds of calls after which no further round starts.
        rounds: least and largest number of rounds.
        evict: function called before every timed call.
        clock: function that waits for the device and returns seconds.
        device: GPU that times the entries by replaying graphs; None to time single calls.

    Returns:
        A row for each entry with the trial's columns, as JSON values.
    """
    torch.compiler.reset()  # or a peer's ninth shape would silently run uncompiled
    prepared = trial.prepare()
    with torch.no_grad():
        results: dict[str, Sequence[Tensor]] = {"": _tensors(prepared.expected())}
        rows = {}
        for entry in prepared.entries:
            row, found = _check(entry, results, trial.tolerance)
            rows[entry.name] = row if row.note else replace(row, counts=entry.counts())
            results[entry.name] = found
        sound = [entry for entry in prepared.entries if not rows[entry.name].note]
        least = rounds[0] if trial.rounds is None else trial.rounds
        if device is None or prepared.again is None:
            samples = {entry.name: _one_by_one(entry, evict, clock) for entry in sound}
        else:
            samples, rows = _on_device(device, trial, prepared, sound, rows)
            sound = [entry for entry in sound if entry.name in samples]
        times = _times(sound, samples, budget, (least, rounds[1]))
    columns = {k: v for k, v in vars(trial).items() if k not in ("prepare", "rounds")}
    columns |= {"shape": dict(trial.shape), "plots": list(trial.plots)}
    baselines = [entry.name for entry in sound if entry.baseline]
    return [columns | asdict(_timed(row, times, baselines)) for row in rows.values()]


def _check(
    entry: Entry, results: Mapping[str, Sequence[Tensor]], tolerance: float
) -> tuple[Row, Sequence[Tensor]]:
    """The entry's result, and a row without times; its note is empty if the entry may be timed."""
    if entry.because:
        return Row(entry.name, note=entry.because), []
    try:
        with entry.within(), time_limit(entry.limit):
            entry.before()
            found = _tensors(entry.call())
    except Exception as raised:  # compilers raise anything: the row says what
        reason = f"{type(raised).__name__}: {_first_line(raised)}"
        return Row(entry.name, note=f"cannot run: {reason}", failed=not entry.optional), []
    if not entry.compared:
        return Row(entry.name), found
    if not results[entry.like]:
        return Row(
            entry.name, note=f"{entry.like} gave nothing to compare with", failed=True
        ), found
    error = error_of(found, results[entry.like])
    if error <= tolerance:
        return Row(entry.name, error), found
    if error == float("inf"):  # JSON has no infinity
        return Row(entry.name, note="NaN, infinity or another shape", failed=True), found
    note = f"error {error:.1e} above {tolerance:.0e}"
    return Row(entry.name, error, note=note, failed=True), found


def _one_by_one(
    entry: Entry, evict: Callable[[], None], clock: Callable[[], float]
) -> Callable[[], float]:
    def sample() -> float:
        evict()
        entry.before()
        start = clock()
        entry.call()
        return clock() - start

    return sample


def _on_device(
    device: Device,
    trial: Trial,
    prepared: Prepared,
    sound: Sequence[Entry],
    rows: dict[str, Row],
) -> tuple[dict[str, Callable[[], float]], dict[str, Row]]:
    """Functions that time the entries over several inputs, and rows with notes on the others."""
    assert prepared.again is not None
    sets = [prepared.entries]
    sets += [prepared.again() for _ in range(device.sets(trial.bytes) - 1)]
    samples: dict[str, Callable[[], float]] = {}
    for entry in sound:
        calls = [one.call for made in sets for one in made if one.name == entry.name]
        try:
            with entry.within():
                samples[entry.name], how = device.sampler(calls)
            rows[entry.name] = replace(rows[entry.name], how=how)
        except Exception as raised:  # as in a check
            note = f"cannot be timed: {type(raised).__name__}: {_first_line(raised)}"
            rows[entry.name] = replace(rows[entry.name], note=note, failed=not entry.optional)
    return samples, rows


def _times(
    entries: Sequence[Entry],
    samples: Mapping[str, Callable[[], float]],
    budget: float,
    rounds: tuple[int, int],
) -> dict[str, list[float]]:
    """Seconds of each entry's calls, one sample a round; the check was the warm-up."""
    times: dict[str, list[float]] = {entry.name: [] for entry in entries}
    spent = 0.0
    for number in range(rounds[1] if entries else 0):
        if number >= rounds[0] and spent >= budget:
            break
        first = number % len(entries)
        for entry in (*entries[first:], *entries[:first]):
            with entry.within():
                seconds = samples[entry.name]()
            times[entry.name].append(seconds)
            spent += seconds
    return times


def _timed(row: Row, times: Mapping[str, list[float]], baselines: Sequence[str]) -> Row:
    own = times.get(row.implementation)
    if own is None:
        return row
    ratios = {
        name: Spread.of([theirs / ours for theirs, ours in zip(times[name], own, strict=True)])
        for name in baselines
        if name != row.implementation
    }
    return replace(row, seconds=Spread.of(own), ratios=ratios)


def _tensors(result: Result) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else ""
