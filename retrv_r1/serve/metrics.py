"""What the server counts, in the text format that Prometheus reads.

Label values come from fixed sets, never from a request: an unknown one counts as ``other``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from retrv_r1.types import RankedResults, TokenCounts

if TYPE_CHECKING:  # they import torch, which reading pictures does not need
    from retrv_engine.base import Stats
    from retrv_r1.rerank.feature_encoder import FeatureStats

PHASES = (
    "queue",
    "pictures",
    "features",
    "compression",
    "prefill",
    "decode",
    "inspection",
    "answer",
    "total",
)
"""Phases of a request; ``total`` is all of it as the service sees it."""

_MODES = ("fast", "reason")
_ORIGINS = ("inline", "remote", "file")
_REASONS = 100
_SECONDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Observed:
    """The state of a server at one moment.

    Args:
        ready: whether it answers.
        running, waiting: calls in work, and calls in the queue.
        engine: the engine's counts; None while there is none.
        features: those of the feature encoder.
    """

    ready: bool = False
    running: int = 0
    waiting: int = 0
    engine: Stats | None = None
    features: FeatureStats | None = None


class Metrics:
    """Counts of one server; several in one process do not mix.

    Args:
        routes: path templates of the server.
        dialects: names of its dialects.
    """

    def __init__(self, *, routes: Collection[str], dialects: Collection[str]) -> None:
        self._routes, self._dialects = frozenset(routes), frozenset(dialects)
        self._reasons: set[str] = set()
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"retrv_{name}", text, labels, registry=registry)

        def histogram(
            name: str, text: str, *labels: str, buckets: tuple[float, ...] = _SECONDS
        ) -> Histogram:
            return Histogram(f"retrv_{name}", text, labels, registry=registry, buckets=buckets)

        self._requests = counter("requests", "Requests answered", "dialect", "route", "status")
        self._latency = histogram("request_seconds", "Seconds of a request", "dialect", "route")
        self._phases = histogram("phase_seconds", "Seconds of a ranking", "mode", "phase")
        self._first = histogram("first_event_seconds", "Seconds to the first event", "mode")
        self._answers = counter("answers", "Rankings", "mode", "chosen_by", "cut")
        self._candidates = histogram("candidates", "Candidates of a ranking", buckets=_SIZES)
        self._tokens = counter("tokens", "Rows read and tokens written", "kind")
        self._inspections = counter("inspections", "Candidates that were looked at in full")
        self._features = counter("features", "Distinct items by where their features were", "where")
        self._refusals = counter("refusals", "Requests and pictures refused", "reason")
        self._pictures = counter("pictures", "Pictures read", "origin")
        self._bytes = counter("picture_bytes", "Encoded bytes of pictures read", "origin")
        self._reading = histogram("picture_seconds", "Seconds to read a picture", "origin")

    def watch(self, observe: Callable[[], Observed]) -> None:
        """Has the state of the server looked at whenever the metrics are rendered; call it once."""
        self.registry.register(_State(observe))

    def request(self, dialect: str, route: str, status: int, seconds: float) -> None:
        """An HTTP request was answered; ``route`` is the template of its path."""
        dialect, route = self._known(dialect, self._dialects), self._known(route, self._routes)
        shown = str(status) if 100 <= status <= 599 else "other"
        self._requests.labels(dialect, route, shown).inc()
        self._latency.labels(dialect, route).observe(seconds)

    def first_event(self, mode: str, seconds: float) -> None:
        """The first event of a stream was sent."""
        self._first.labels(self._known(mode, (*_MODES, "auto"))).observe(seconds)

    def answered(self, results: RankedResults, candidates: int) -> None:
        """A list of ``candidates`` was ranked."""
        bill, mode = results.bill, self._known(results.mode, _MODES)
        chosen = "server" if results.auto else "caller"
        self._answers.labels(mode, chosen, "yes" if results.cut else "no").inc()
        self._candidates.observe(candidates)
        for phase, seconds in bill.seconds.items():
            self.phase(mode, phase, seconds)
        for one in fields(TokenCounts):
            self._tokens.labels(one.name).inc(getattr(bill.tokens, one.name))
        self._inspections.inc(bill.inspections)
        for where in ("remembered", "stored", "encoded"):
            self._features.labels(where).inc(getattr(bill, where))

    def phase(self, mode: str, phase: str, seconds: float) -> None:
        """A phase took some time."""
        labels = self._known(mode, (*_MODES, "auto")), self._known(phase, PHASES)
        self._phases.labels(*labels).observe(seconds)

    def refused(self, reason: str) -> None:
        """A request or a picture was refused; ``reason`` is the code of an error of ours."""
        if reason not in self._reasons and len(self._reasons) < _REASONS:
            self._reasons.add(reason)
        self._refusals.labels(self._known(reason, self._reasons)).inc()

    def picture(self, origin: str, size: int, seconds: float) -> None:
        """A picture of ``size`` encoded bytes was read."""
        origin = self._known(origin, _ORIGINS)
        self._pictures.labels(origin).inc()
        self._bytes.labels(origin).inc(size)
        self._reading.labels(origin).observe(seconds)

    def render(self) -> tuple[bytes, str]:
        """The metrics, and their content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    @staticmethod
    def _known(value: str, values: Collection[str]) -> str:
        return value if value in values else "other"


class _State(Collector):
    """Makes metrics of what is observed, at the moment that they are asked for."""

    def __init__(self, observe: Callable[[], Observed]) -> None:
        self._observe = observe

    def describe(self) -> Iterator[Metric]:
        """Nothing, so that registering it observes nothing yet."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        found = self._observe()
        yield _gauge("ready", "Whether the server answers", found.ready)
        yield _gauge("running", "Calls in work", found.running)
        yield _gauge("waiting", "Calls in the queue", found.waiting)
        if found.engine is not None:
            yield from _of_engine(found.engine)
        if found.features is not None:
            yield _gauge("feature_bytes", "Bytes of features in memory", found.features.bytes)
            yield _gauge(
                "feature_hit_rate",
                "Share of items that were found instead of encoded",
                found.features.hit_rate,
            )


def _of_engine(stats: Stats) -> Iterator[Metric]:
    yield _gauge("engine_running", "Engine requests in the batch", stats.running)
    yield _gauge("engine_waiting", "Engine requests that wait for the batch", stats.waiting)
    yield _gauge("pages", "Pages of the key-value cache", stats.pages)
    yield _gauge("free_pages", "Pages that are free", stats.free_pages)
    yield _gauge(
        "cached_pages", "Pages that hold a prefix for requests to come", stats.cached_pages
    )
    yield _gauge("radix_hit_rate", "Share of rows found in the radix cache", stats.hit_rate)
    # Their quotient is the mean number of rows in a batch.
    yield _counter("engine_steps", "Steps of the engine", stats.steps)
    yield _counter("engine_rows", "Rows that went through the model", stats.computed_rows)
    yield _counter("preempted", "Times that a request lost its pages", stats.preempted)
    yield _counter("evicted_pages", "Cached pages that were evicted", stats.evicted_pages)
    yield _counter("engine_restarts", "Times that the engine was mended", stats.restarts)
    if stats.batches:
        yield _batches(stats.batches)


def _batches(steps: Mapping[int, int]) -> HistogramMetricFamily:
    """Sizes of the engine's batches, of its count of steps by size."""

    def up_to(most: float) -> float:
        return float(sum(count for size, count in steps.items() if size <= most))

    buckets = [(str(float(most)), up_to(most)) for most in _BATCHES]
    return HistogramMetricFamily(
        "retrv_engine_batch",
        "Requests in a step of the engine",
        [*buckets, ("+Inf", up_to(math.inf))],
        sum(size * count for size, count in steps.items()),
    )


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"retrv_{name}", text, value=float(value))


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"retrv_{name}", text, value=float(value))
