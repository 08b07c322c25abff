"""What a server promises under load, held against what its clients, its log and its metrics say."""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.serve_load.asks import MODES
from bench.serve_load.client import Outcome

MEMORY = 0.05
"""Share by which the server's memory may leave its median once it is warm."""
WARM = 0.2
"""Share of the run after which the server counts as warm; its cache is full from the beginning."""
FILES = 8
"""Open files that may be more than at the start: a decoder's pipes, a connection that just ends."""
SHOWN = 5
FAULTS = ("lost", "failed", "wrong")


@dataclass
class Seen:
    """What was seen in a run.

    Attributes:
        outcomes: all requests of all clients.
        logged: statuses by request, as the server's log has them.
        before, after: metrics before the first request, and when the server was idle again.
        memory: resident bytes of the server's process, at equal distances.
        sheds: whether there were more clients than the server takes, so that some get 429.
        lines: lines of the log that tell of a fault of the server's own.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    logged: dict[str, list[int]] = field(default_factory=dict)
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    memory: list[int] = field(default_factory=list)
    sheds: bool = False
    lines: list[str] = field(default_factory=list)


def read_log(path: Path) -> tuple[dict[str, list[int]], list[str]]:
    """Statuses by request of a server's log, and its lines of level ERROR."""
    statuses: defaultdict[str, list[int]] = defaultdict(list)
    errors = []
    for text in path.read_text(encoding="utf-8").splitlines():
        line: dict[str, Any] = json.loads(text) if text.startswith("{") else {"level": "ERROR"}
        if line.get("message") == "request":
            statuses[line["id"]].append(line["status"])
        if line["level"] == "ERROR":
            errors.append(text)
    return dict(statuses), errors


def read_metrics(text: str) -> dict[str, float]:
    """Metrics without labels."""
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs if "{" not in name}


def held(metrics: Mapping[str, float]) -> dict[str, float]:
    """What a server holds of requests: calls, engine requests, and pages of the cache."""
    counts = ("running", "waiting", "engine_running", "engine_waiting")
    found = {name: metrics[f"retrv_{name}"] for name in counts}
    pages, free, cached = (metrics[f"retrv_{name}pages"] for name in ("", "free_", "cached_"))
    return {**found, "pages": pages - free - cached}


def broken(seen: Seen) -> list[str]:
    """The promises that were not kept, each in a line; none where all were."""
    return [
        *_lost(seen.outcomes),
        *_twice(seen.outcomes, seen.logged),
        *(
            f"{value:g} {name} are held at the end"
            for name, value in held(seen.after).items()
            if value
        ),
        *_grown(seen),
        *_refusals(seen),
        *(f"the server's log: {line[:300]}" for line in seen.lines[:SHOWN]),
    ]


def _lost(outcomes: Sequence[Outcome]) -> Iterator[str]:
    for end in FAULTS:
        found = [one for one in outcomes if one.end == end]
        if found:
            notes = Counter(one.note[:200] for one in found).most_common(SHOWN)
            yield f"{len(found)} requests are {end}: {notes}"
    for mode in MODES:
        if not any(one.end == "answered" for one in outcomes if one.ask.mode == mode):
            yield f"no request of mode {mode} was answered"


def _twice(outcomes: Sequence[Outcome], logged: Mapping[str, Sequence[int]]) -> Iterator[str]:
    """What the log says of each request: one end, and the one that its client has seen."""
    wrong: Counter[str] = Counter()
    for one in outcomes:
        statuses = logged.get(one.ask.id, ())
        if one.end == "hung up":
            if len(statuses) > 1:
                wrong[f"hung up, with {len(statuses)} ends in the log"] += 1
        elif len(statuses) != 1:
            wrong[f"{one.end}, with {len(statuses)} ends in the log"] += 1
        elif one.end == "answered" and statuses[0] != 200:
            wrong[f"answered, with status {statuses[0]} in the log"] += 1
    yield from (f"{count} requests {what}" for what, count in wrong.items())
    ids = {one.ask.id for one in outcomes}
    if len(ids) != len(outcomes):
        yield "two requests had the same id"


def _grown(seen: Seen) -> Iterator[str]:
    most, median = deviation(seen.memory)
    if most > MEMORY:
        yield f"memory left its median of {median / 2**20:.0f} MiB by {most:.1%}"
    files = seen.after["process_open_fds"] - seen.before["process_open_fds"]
    if files > FILES:
        yield f"{files:g} more files are open than before"


def deviation(memory: Sequence[int]) -> tuple[float, float]:
    """Largest relative distance from the median, and the median, of a warm server's memory."""
    warm = memory[int(WARM * len(memory)) :]
    if not warm:
        return 0.0, 0.0
    median = statistics.median(warm)
    return max(abs(one - median) for one in warm) / median, median


def _refusals(seen: Seen) -> Iterator[str]:
    if seen.sheds and not any(one.end == "refused" for one in seen.outcomes):
        yield "nobody was refused, though there were more clients than places"


def counts(outcomes: Iterable[Outcome]) -> dict[str, dict[str, Any]]:
    """By mode: how many requests ended how, and percentiles of the answered ones' seconds."""
    rows: dict[str, dict[str, Any]] = {}
    outcomes = list(outcomes)
    for mode in MODES:
        own = [one for one in outcomes if one.ask.mode == mode]
        row: dict[str, Any] = {"sent": len(own), **Counter(one.end for one in own)}
        for name in ("seconds", "first"):
            row[name] = percentiles([getattr(o, name) for o in own if o.end == "answered"])
        rows[mode] = row
    return rows


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The 50th, 90th and 99th percentile; none of fewer than two values."""
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {f"p{place}": cuts[place - 1] for place in (50, 90, 99)}
