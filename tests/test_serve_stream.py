"""Events: reasoning as it is written, the ranking last, and nothing goes on for who hangs up."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from serve_app import HangingUp, Server, ServiceDouble, double, events_of, results_of

from retrv_r1.rerank.events import Draft
from retrv_r1.serve import sending, stream
from retrv_r1.serve.calls import EngineFailed, QueueFull, RankCall
from retrv_r1.serve.settings import Settings

ASK = {"query": "apple", "documents": ["pear", "red apple"]}
STREAM = {**ASK, "stream": True}


@pytest.mark.parametrize("way", ["body", "retrv", "accept"])
def test_events_come_in_order_and_the_ranking_last(way):
    with double() as server:
        if way == "accept":
            answer = server.post("/v1/rerank", ASK, Accept="text/event-stream")
        else:
            body = STREAM if way == "body" else {**ASK, "retrv": {"stream": True}}
            answer = server.post("/v1/rerank", body)
        whole = server.post("/v1/rerank", ASK).json()
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-accel-buffering"] == "no" and "content-length" not in answer.headers
    events = events_of(answer.text)
    assert events[:2] == [
        ("reasoning", {"text": "ideal: ", "vote": 0}),
        ("inspection", {"index": 1, "vote": 0}),
    ]
    name, ranking = events[2]
    assert len(events) == 3 and name == "ranking"
    differing = {"id", "created"}
    assert {k: v for k, v in ranking.items() if k not in differing} == {
        k: v for k, v in whole.items() if k not in differing
    }


class Drafting(ServiceDouble):
    """Has an early answer, after a while."""

    async def stream(self, call: RankCall) -> AsyncIterator[Any]:
        await asyncio.sleep(2 * stream.FIRST_WAIT)
        yield Draft(results_of(call))
        yield await self.rank(call)


def test_a_draft_is_an_event_and_counts_as_no_answer():
    with Server(None, Drafting()) as server:
        answer = server.post("/v1/rerank", STREAM)
        metrics = server.get("/metrics").text
    (first, draft), (last, ranking) = events_of(answer.text)
    assert (first, last) == ("draft", "ranking") and draft["results"] == ranking["results"]
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
    }
    assert found["retrv_candidates_count",] == 1
    assert found["retrv_tokens_total", "generated"] == 12
    waited = found["retrv_first_event_seconds_sum", "fast"]
    assert waited >= 2 * stream.FIRST_WAIT


def test_a_client_that_takes_json_as_well_gets_json():
    with double() as server:
        answer = server.post("/v1/rerank", ASK, Accept="application/json, text/event-stream")
    assert answer.json()["results"]


def test_the_ranking_has_the_form_of_the_dialect():
    with double() as server:
        answer = server.post("/rerank", {"query": "a", "texts": ["b"], "stream": True})
    assert events_of(answer.text)[-1] == ("ranking", [{"index": 0, "score": 0.5}])


def test_an_early_error_has_its_status():
    with double(failure=QueueFull(4)) as server:
        answer = server.post("/v1/rerank", STREAM)
    assert answer.status_code == 429 and answer.headers["Retry-After"] == "4"
    assert answer.json()["error"]["code"] == "queue_full"


def test_a_late_error_is_an_event():
    async def fail() -> None:
        raise EngineFailed("secret")

    with double(pause=fail) as server:
        answer = server.post("/v1/rerank", STREAM)
        metrics = server.get("/metrics").text
    name, error = events_of(answer.text)[-1]
    assert (answer.status_code, name) == (200, "error")
    assert error["error"]["code"] == "engine_failed" and "secret" not in answer.text
    assert 'route="/v1/rerank",status="503"} 1.0' in metrics


def test_a_fault_of_ours_is_an_event_without_a_trace():
    async def fail() -> None:
        raise KeyError("secret")

    with double(pause=fail) as server:
        answer = server.post("/v1/rerank", STREAM)
    name, error = events_of(answer.text)[-1]
    assert (name, error["error"]["code"]) == ("error", "internal_error")
    assert "secret" not in answer.text


def test_silence_is_filled_with_comments():
    async def wait() -> None:
        await asyncio.sleep(0.3)

    with double(Settings(keep_alive=0.05), pause=wait) as server:
        names = [name for name, _ in events_of(server.post("/v1/rerank", STREAM).text)]
    assert names[:2] == ["reasoning", "inspection"] and names[-1] == "ranking"
    assert 2 <= names.count(":") <= 10


def test_the_deadline_ends_a_stream():
    async def forever() -> None:
        await asyncio.sleep(60)

    with double(Settings(deadline=0.3), pause=forever) as server:
        name, error = events_of(server.post("/v1/rerank", STREAM).text)[-1]
        assert (name, error["error"]["code"]) == ("error", "deadline_exceeded")
        assert server.service.cancelled == 1


def test_a_client_that_hangs_up_cancels_its_stream():
    async def check() -> HangingUp:
        async def forever() -> None:
            await asyncio.sleep(60)

        server.service.pause = forever
        client = HangingUp("/v1/rerank", STREAM)
        call = asyncio.create_task(server.app(client.scope, client.receive, client.send))
        await client.first.wait()
        client.gone.set()
        await asyncio.wait_for(call, 10)
        return client

    with double() as server:
        client = server.run(check())
        assert server.service.cancelled == 1
        assert 'status="499"} 1.0' in server.get("/metrics").text
    sent = b"".join(message.get("body", b"") for message in client.sent).decode()
    assert [name for name, _ in events_of(sent)] == ["reasoning", "inspection"]


def test_a_place_is_free_again_after_a_stream():
    from retrv_r1.serve.limits import Limits

    with double(Settings(limits=Limits(max_requests=1))) as server:
        for _ in range(3):
            assert events_of(server.post("/v1/rerank", STREAM).text)[-1][0] == "ranking"


@pytest.mark.parametrize("size", [9, 400_000])
def test_a_large_answer_is_encoded_beside_the_loop_and_comes_in_pieces(size, monkeypatch):
    """Drafts too; small ones are encoded at once."""
    threads: list[bool] = []
    encoder = sending._ENCODER.iterencode

    def seen(content: Any) -> Any:
        threads.append(threading.current_thread() is server._thread)
        return encoder(content)

    monkeypatch.setattr(sending, "_ENCODER", SimpleNamespace(iterencode=seen, encode=json.dumps))
    body = {**STREAM, "documents": ["x" * size] * 3}
    with Server(None, Drafting()) as server:
        client = HangingUp("/v1/rerank", body)
        server.run(server.app(client.scope, client.receive, client.send))
    pieces = [message.get("body", b"") for message in client.sent]
    events = events_of(b"".join(pieces).decode())
    assert [name for name, _ in events] == ["draft", "ranking"]
    assert events[-1][1]["results"][0]["document"]["text"] == "x" * size
    assert threads == ([False, False] if size > 9 else [])
    assert max(map(len, pieces)) <= sending.PIECE
    assert [message["more_body"] for message in client.sent[1:]][-2:] == [True, False]


def test_a_deadline_that_passes_while_an_event_is_taken_does_not_cut_it():
    client = HangingUp("/v1/rerank", {**STREAM, "documents": ["x" * 90_000] * 2})

    async def slowly(message: Any) -> None:
        client.sent.append(message)
        if message.get("body", b"").startswith(b"event: ranking"):
            await asyncio.sleep(2.5)

    with double(Settings(deadline=2.0)) as server:
        server.run(server.app(client.scope, client.receive, slowly))
    events = events_of(b"".join(message.get("body", b"") for message in client.sent).decode())
    assert [name for name, _ in events] == ["reasoning", "inspection", "ranking"]


def test_data_of_an_event_is_one_line_whatever_it_says():
    value: dict[str, Any] = {"text": "a\nb\r\n\u2028 é\ud800"}
    block = stream.to_event("reasoning", sending.encode(value)).decode()
    assert block.count("\n") == 3 and block.endswith("\n\n")
    assert json.loads(block.split("data: ")[1])["text"].startswith("a\nb\r\n")
