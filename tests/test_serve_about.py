"""What the server says of itself: limits, metrics that hold nothing up, and the score of one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from serve_app import Server, ServiceDouble

from retrv_r1 import Reranker
from retrv_r1.serve import probe
from retrv_r1.serve.pictures import PicturePolicy
from retrv_r1.serve.service import RerankService

ONE = {"query": "a red apple", "documents": ["a blue bird"], "retrv": {"mode": "fast"}}
PAIR = {"text_1": "a red apple", "text_2": "a blue bird"}


@pytest.fixture
def random(make_model, processor) -> Iterator[tuple[Reranker, Server]]:
    """A small model of random weights, which has a label for none of these, and its server."""
    reranker = Reranker(make_model(), processor, name="random")
    with Server(None, RerankService(reranker)) as server:  # which closes it
        yield reranker, server


def values(server: Server) -> dict[str, float]:
    """Metrics by name, those with labels left out."""
    lines = server.get("/metrics").text.splitlines()
    pairs = (line.split() for line in lines if not line.startswith("#") and "{" not in line)
    return {name: float(value) for name, value in pairs}


def test_info_lists_the_limits_of_requests_and_of_pictures():
    policy = PicturePolicy(max_bytes=9000, max_seconds=2.5)
    with Server(None, ServiceDouble(), policy=policy) as server:
        limits = server.get("/info").json()["limits"]
        picture = "data:image/png;base64," + "A" * 16_000
        ask = {"query": "a", "documents": [{"image": picture}]}
        refused = server.post("/v1/rerank", ask).json()["error"]
    assert (limits["max_picture_bytes"], limits["max_picture_seconds"]) == (9000, 2.5)
    assert limits["max_documents"] == 1000 and limits["max_picture_pixels"] > 10**7
    assert refused["code"] == "max_picture_bytes"


def test_metrics_and_health_do_not_wait_for_the_end_of_a_step(random, monkeypatch):
    reranker, server = random
    assert server.post("/v1/rerank", ONE).status_code == 200
    before = values(server)["retrv_engine_steps_total"]
    monkeypatch.setattr(probe, "FRESH", 0.0)
    held, let_go = threading.Event(), threading.Event()

    def step() -> None:
        with reranker.engine._turn:
            held.set()
            let_go.wait(30)

    threading.Thread(target=step).start()
    assert held.wait(10)
    try:
        for _ in range(2):
            began = time.monotonic()
            assert server.get("/health").status_code == 200, "it has answered before"
            assert values(server)["retrv_engine_steps_total"] == before
            assert time.monotonic() - began < 5
    finally:
        let_go.set()


def test_an_engine_that_was_mended_is_counted(random, monkeypatch):
    reranker, server = random
    assert values(server)["retrv_engine_restarts_total"] == 0
    runner = reranker.engine.runner
    run = runner.run

    def broken(extends: Any) -> Any:
        monkeypatch.setattr(runner, "run", run)
        raise MemoryError("the model broke")

    monkeypatch.setattr(runner, "run", broken)
    assert server.post("/v1/rerank", ONE).status_code == 503
    assert server.post("/v1/rerank", ONE).status_code == 200
    found = values(server)
    assert found["retrv_engine_restarts_total"] == 1 and found["retrv_ready"] == 1
    assert found["retrv_engine_batch_count"] == found["retrv_engine_steps_total"] > 0


def test_every_phase_of_a_ranking_has_its_name_in_the_metrics(random):
    _, server = random
    two = {"query": "a red apple", "documents": ["a blue bird", "an apple"]}
    bill = server.post("/v1/rerank", {**two, "retrv": {"mode": "reason"}}).json()["retrv"]["bill"]
    text = server.get("/metrics").text
    assert "answer" in bill["seconds"] and 'phase="other"' not in text
    for phase in bill["seconds"]:
        assert f'retrv_phase_seconds_count{{mode="reason",phase="{phase}"}} 1.0' in text


def test_one_document_is_compared_with_none_of_these(random):
    reranker, server = random
    expected = reranker.rank(ONE["query"], ONE["documents"], mode="fast")
    answer = server.post("/v1/rerank", ONE).json()
    score, none = answer["results"][0]["relevance_score"], answer["retrv"]["none_of_these"]
    assert score == pytest.approx(expected[0].score) and 0 < score < 1
    assert score + none == pytest.approx(1)
    body = server.post("/v1/score", PAIR).json()
    assert body["data"][0]["score"] == pytest.approx(score) and "warnings" not in body
    texts = {"query": ONE["query"], "texts": ONE["documents"]}
    assert server.post("/rerank", texts).json()[0]["score"] == pytest.approx(score)
    both = server.post("/v1/score", {**PAIR, "text_1": ["a red apple", "find"]}).json()
    assert all(0 < row["score"] < 1 for row in both["data"]), "two lists of one pair each"


def test_without_a_label_for_none_a_pair_alone_has_the_score_1_and_a_warning(random, monkeypatch):
    reranker, server = random
    processor = reranker.processor
    monkeypatch.setattr(processor, "tokens", replace(processor.tokens, none=None))
    body = server.post("/v1/score", PAIR).json()
    assert body["data"][0]["score"] == 1 and "nothing to be compared with" in body["warnings"][0]
    assert server.post("/v1/rerank", ONE).json()["retrv"]["none_of_these"] is None
