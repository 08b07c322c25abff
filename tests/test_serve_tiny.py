"""The server with the shipped checkpoint: one document, one score, whatever form it came in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from serve_app import HangingUp, Server, events_of, png

RED, BLUE = png("red"), png("blue")
BARE = RED.partition(",")[2]


@pytest.fixture(scope="module", name="server")
def shared() -> Iterator[Server]:
    with Server() as server:
        yield server


def scores(server: Server, documents: list[Any], query: Any = "a red square") -> list[float]:
    """Scores in the order of the documents."""
    answer = server.post("/v1/rerank", {"query": query, "documents": documents})
    assert answer.status_code == 200, answer.text
    rows = answer.json()["results"]
    assert sorted(row["index"] for row in rows) == list(range(len(documents)))
    return [row["relevance_score"] for row in sorted(rows, key=lambda row: row["index"])]


@pytest.mark.parametrize(
    "form",
    [
        {"image": RED},
        {"image": BARE},
        {"image": {"url": RED}},
        {"content": [{"type": "image_url", "image_url": {"url": RED}}]},
        [{"type": "image_url", "image_url": RED}],
        [{"type": "image_base64", "image_base64": RED}],
        {"type": "image", "format": "base64", "value": BARE},
    ],
)
def test_a_picture_has_one_score_in_every_form(server, form):
    rest = [{"image": BLUE}, "a fire engine"]
    assert scores(server, [form, *rest]) == scores(server, [{"image": RED}, *rest])


@pytest.mark.parametrize(
    "form",
    [
        {"text": "an apple"},
        {"content": "an apple"},
        {"content": [{"type": "text", "text": "an apple"}]},
        [{"type": "text", "text": "an apple"}],
        ["an apple"],
    ],
)
def test_a_text_has_one_score_in_every_form(server, form):
    assert scores(server, [form, "a car"]) == scores(server, ["an apple", "a car"])


def test_text_and_picture_of_a_document_are_one_candidate(server):
    both = {"text": "an apple", "image": RED}
    together = scores(server, [both, "a car"])
    assert len(together) == 2
    assert together != scores(server, ["an apple", "a car"])
    assert together != scores(server, [{"image": RED}, "a car"])


def test_a_query_may_be_a_picture(server):
    first, second = scores(server, [{"image": RED}, {"image": BLUE}], query={"image": RED})
    assert first > second


def test_a_damaged_picture_is_named(server):
    documents = ["a car", {"image": "data:image/png;base64,aGVsbG8="}]
    answer = server.post("/v1/rerank", {"query": "a", "documents": documents})
    assert answer.status_code == 415
    assert answer.json()["error"]["param"] == "documents[1]"


def test_a_hundred_pictures_are_ranked_as_one_list(server):
    pictures = [{"image": png(f"#{number:02x}8040"), "id": number} for number in range(100)]
    answer = server.post("/v1/rerank", {"query": "a red square", "documents": pictures})
    rows = answer.json()["results"]
    assert sorted(row["id"] for row in rows) == list(range(100))
    assert all(row["id"] == row["index"] for row in rows)
    ranked = [row["relevance_score"] for row in rows]
    assert ranked == sorted(ranked, reverse=True)


@pytest.mark.slow
def test_a_thousand_documents_are_ranked_as_one_list(server):
    documents = [f"number {number % 990}" for number in range(1000)]  # ten of them twice
    answer = server.post("/v1/rerank", {"query": "number 7", "documents": documents})
    assert answer.status_code == 200
    assert sorted(row["index"] for row in answer.json()["results"]) == list(range(1000))


def test_events_add_up_to_the_answer(server):
    ask = {
        "query": "a red square",
        "documents": ["a car", {"image": RED}, {"image": BLUE}, "an apple"],
        "retrv": {"mode": "reason"},
    }
    whole = server.post("/v1/rerank", ask).json()
    events = events_of(server.post("/v1/rerank", {**ask, "stream": True}).text)
    assert events[-1][0] == "ranking"
    ranking = events[-1][1]
    written = "".join(data["text"] for name, data in events if name == "reasoning")
    looked = [data["index"] for name, data in events if name == "inspection"]
    assert written.split() == ranking["retrv"]["reasoning"].split() != []
    assert looked == ranking["retrv"]["inspected"]
    assert ranking["results"] == whole["results"]
    assert whole["retrv"]["bill"]["tokens"]["generated"] > 0


def test_a_budget_cuts_the_reasoning(server):
    ask = {"query": "a red square", "documents": ["a car", {"image": RED}, {"image": BLUE}]}
    body = server.post("/v1/rerank", {**ask, "retrv": {"mode": "reason", "budget_ms": 1}}).json()
    assert body["retrv"]["cut"] and len(body["results"]) == 3


def test_who_hangs_up_leaves_the_engine_idle(server):
    ask = {
        "query": "a red square",
        "documents": ["a car", {"image": RED}, {"image": BLUE}],
        "stream": True,
        "retrv": {"mode": "reason", "votes": 8},
    }

    async def check() -> HangingUp:
        client = HangingUp("/v1/rerank", ask)
        call = asyncio.create_task(server.app(client.scope, client.receive, client.send))
        await client.first.wait()
        client.gone.set()
        await asyncio.wait_for(call, 10)
        return client

    client = server.run(check())
    sent = b"".join(message.get("body", b"") for message in client.sent).decode()
    assert "ranking" not in [name for name, _ in events_of(sent)]
    assert server.run(server.service.health()).running == 0
    until = time.monotonic() + 30
    while (stats := server.service.reranker.stats()[0]).running or stats.waiting:
        assert time.monotonic() < until, stats  # it lets go at its next step
        time.sleep(0.01)
    assert stats.cancelled > 0
