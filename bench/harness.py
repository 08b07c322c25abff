"""One trial: each implementation is first checked against float64, then all are timed in turns.

    for round in rounds:  for implementation in order rotated by round:  evict caches, time a call

What slows the machine for a while slows all of a round, so ratios are taken within rounds. An
implementation that fails its check, or that cannot run, is never timed. On a GPU a round replays a
graph of calls over several inputs instead (:mod:`bench.device`), and there is nothing to evict.
"""

from __future__ import annotations

import signal
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import timer

from bench.device import Device
from retrv_kernels.cases import error_of

Result = Tensor | Sequence[Tensor]
ROUNDS = (3, 50)
"""At least and at most, whatever the budget."""


@dataclass(frozen=True)
class Entry:
    """One way to compute a trial.

    Args:
        call: computes it, from inputs made beforehand.
        within: makes the context that each call runs in, such as a choice of kernels.
        baseline: others are compared with it.
        optional: may be unable to run, which is then said; of others it is a failure.
        because: why it is not run here, "" if it is.
        like: the entry before this one whose result it must give; of the trial's where empty.
        compared: False for what computes something else on purpose, such as with rounded weights;
            it has no error then.
        counts: what the call before took, by name, such as rows computed.
        before: done ahead of each call, outside of what is timed.
        limit: seconds that the first call may take, which compiles; 0 for any number.
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
        expected: the result that is right: in float64, or of a reference.
        again: makes the entries anew, with inputs in memory of their own; None for what is timed
            call by call on a GPU as well.
    """

    expected: Callable[[], Result]
    entries: Sequence[Entry]
    again: Callable[[], Sequence[Entry]] | None = None


@dataclass(frozen=True)
class Trial:
    """Inputs on which implementations are compared.

    Args:
        shape: sizes by their name.
        flops, bytes: that the operation needs at least: what bounds its speed.
        tolerance: largest error, relative to the largest expected value.
        prepare: makes the inputs; called when the trial's turn comes.
        plots: sizes in whose sweeps it stands, and "ratios" for the chart of those.
        rounds: at least, for trials whose calls take long; the harness's own number for None.
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
    """Trials in the order in which they run, and notes: what is timed and what is left out."""

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
    """What one implementation did in one trial.

    Args:
        error: largest, relative to the largest expected value; None where there is none.
        note: why there is no time, empty where there is one.
        failed: it ran and is wrong, or had to run and could not.
        seconds: of a call; None unless the check passed.
        ratios: for each baseline its time divided by this one's, over rounds: above 1 is faster.
        counts: what the call that was checked took.
        how: it was timed where that is not as usual on its device.
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
        rounds: at least and at most.
        evict: called before every timed call.
        clock: seconds; waits for the device first.
        device: a GPU, which times in its own way what can be made again.

    Returns:
        A row for each entry, with the trial's own columns, as JSON values.
    """
    torch.compiler.reset()  # or the ninth shape of a peer would run uncompiled without a word
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
    """A row without times, whose note is empty if the entry may be timed, and the result."""
    if entry.because:
        return Row(entry.name, note=entry.because), []
    try:
        with entry.within(), time_limit(entry.limit):
            entry.before()
            found = _tensors(entry.call())
    except Exception as raised:  # whatever a compiler raises: the row says it
        reason = f"{type(raised).__name__}: {_first_line(raised)}"
        return Row(entry.name, note=f"cannot run: {reason}", failed=not entry.optional), []
    if not entry.compared:
        return Row(entry.name), found
    if not results[entry.like]:
        return Row(entry.name, note=f"{entry.like} gave nothing to compare", failed=True), found
    error = error_of(found, results[entry.like])
    if error <= tolerance:
        return Row(entry.name, error), found
    if error == float("inf"):  # which JSON has not
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
    """What times each entry over several inputs; one that cannot be timed gets a note instead."""
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
        except Exception as raised:  # as of a check
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


class _Late(BaseException):
    """Raised by an alarm: no compiler catches it on its way."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError once Python has been inside for so long; 0 for never.

    Only in a process's main thread; what is compiled code ends first.
    """
    if not seconds:
        yield
        return

    def late(*_: object) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _Late:
        raise TimeoutError(f"not done within {seconds:.0f} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


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
