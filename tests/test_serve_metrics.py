"""What the server counts, and that nobody can make it count without end."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from retrv_engine.base import Stats
from retrv_r1.rerank.feature_encoder import FeatureStats
from retrv_r1.serve.metrics import Metrics, Observed
from retrv_r1.types import Bill, Item, RankedResults, TokenCounts


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(routes=["/v1/rerank"], dialects=["jina"])


def samples(metrics: Metrics) -> dict[tuple, float]:
    text, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def results(**values) -> RankedResults:
    return RankedResults(Item("q"), 0, (), **values)


def test_a_request_counts_by_dialect_route_and_status(metrics):
    metrics.request("jina", "/v1/rerank", 200, 0.02)
    metrics.request("jina", "/v1/rerank", 200, 0.2)
    found = samples(metrics)
    assert found["retrv_requests_total", "/v1/rerank", "200", "jina"] == 2
    assert found["retrv_request_seconds_sum", "/v1/rerank", "jina"] == pytest.approx(0.22)
    assert found["retrv_request_seconds_bucket", "/v1/rerank", "0.025", "jina"] == 1


def test_an_answer_counts_what_its_bill_says(metrics):
    bill = Bill(
        seconds={"decode": 0.5, "total": 0.75},
        tokens=TokenCounts(prompt=100, generated=7, cached=40),
        inspections=2,
        remembered=3,
        encoded=1,
    )
    metrics.answered(results(mode="reason", bill=bill, auto=True, cut=True), 50)
    found = samples(metrics)
    assert found["retrv_answers_total", "reason", "server", "yes"] == 1
    assert found["retrv_phase_seconds_sum", "decode", "reason"] == 0.5
    assert found["retrv_phase_seconds_count", "reason", "total"] == 1
    assert found["retrv_tokens_total", "prompt"] == 100
    assert found["retrv_tokens_total", "cached"] == 40
    assert found["retrv_inspections_total",] == 2
    assert found["retrv_features_total", "remembered"] == 3
    assert found["retrv_candidates_sum",] == 50


def test_pictures_refusals_and_first_events_are_counted(metrics):
    metrics.picture("inline", 5000, 0.001)
    metrics.refused("queue_full")
    metrics.first_event("reason", 0.3)
    found = samples(metrics)
    assert found["retrv_picture_bytes_total", "inline"] == 5000
    assert found["retrv_refusals_total", "queue_full"] == 1
    assert found["retrv_first_event_seconds_sum", "reason"] == 0.3


def test_the_state_is_looked_at_when_the_metrics_are_asked_for(metrics):
    state = [Observed(waiting=3)]
    metrics.watch(lambda: state[0])
    assert samples(metrics)["retrv_waiting",] == 3
    batches, work = {1: 5, 3: 4, 200: 1}, {"steps": 10, "computed_rows": 60, "cached_rows": 40}
    engine = Stats(running=4, **work, pages=8, free_pages=5, restarts=1, batches=batches)
    features = FeatureStats(ram_hits=3, encoded=1)
    state[0] = Observed(True, 4, 0, engine=engine, features=features)
    found = samples(metrics)
    assert found["retrv_waiting",] == 0 and found["retrv_ready",] == 1
    assert found["retrv_engine_running",] == 4
    assert found["retrv_engine_restarts_total",] == 1
    assert found["retrv_radix_hit_rate",] == 0.4
    assert found["retrv_feature_hit_rate",] == 0.75
    assert found["retrv_free_pages",] == 5
    at_most = {size: found["retrv_engine_batch_bucket", size] for size in ("1.0", "4.0", "128.0")}
    assert at_most == {"1.0": 5, "4.0": 9, "128.0": 9}
    assert found["retrv_engine_batch_count",] == 10 and found["retrv_engine_batch_sum",] == 217
    assert found["retrv_engine_rows_total",] / found["retrv_engine_steps_total",] == 6


def test_what_callers_choose_never_becomes_a_label(metrics):
    for number in range(500):
        metrics.request(f"d{number}", f"/{number}", 100_000 + number, 0.1)
        metrics.refused(f"r{number}")
        metrics.picture(f"o{number}", 1, 0.1)
        metrics.first_event(f"m{number}", 0.1)
        metrics.answered(results(mode=f"m{number}", bill=Bill(seconds={f"p{number}": 1.0})), 1)
    found = samples(metrics)
    assert found["retrv_requests_total", "other", "other", "other"] == 500
    assert sum(name[0] == "retrv_refusals_total" for name in found) == 101
    assert len(found) < 500


def test_the_memory_of_the_process_is_there_and_servers_do_not_mix(metrics):
    other = Metrics(routes=[], dialects=[])
    other.refused("queue_full")
    found = samples(metrics)
    assert found["process_resident_memory_bytes",] > 2**20
    assert ("retrv_refusals_total", "queue_full") not in found
