"""The HTTP server refuses what it must, never fails, and never says more than it should."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from serve_app import HangingUp, Server, ServiceDouble, double

from retrv_engine import DeadlineExceeded, EngineDied, RequestTooLarge
from retrv_r1.serve import sending
from retrv_r1.serve.auth import Keys
from retrv_r1.serve.calls import EngineFailed, NotReady, QueueFull
from retrv_r1.serve.dialects import RERANK_PATHS, SCORE_PATHS
from retrv_r1.serve.limits import Limits
from retrv_r1.serve.settings import Settings
from retrv_r1.types import ItemError, RetrvError

ASK = {"query": "apple", "documents": ["pear", "red apple"]}
KEY = "a-key-of-some-length"


@pytest.fixture(scope="module", name="server")
def shared() -> Iterator[Server]:
    with double() as server:
        yield server


def code_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (b"{", {}, (400, "malformed_body")),
        (b"[1]", {}, (400, "malformed_body")),
        (b"{}", {}, (400, "missing_field")),
        (b'{"query": "a"}', {}, (400, "missing_field")),
        (b'{"query": "a", "documents": "b"}', {}, (400, "invalid_value")),
        (b'{"query": "a", "documents": []}', {}, (400, "invalid_value")),
        (b'{"query": "a", "documents": ["b"], "top_n": "3"}', {}, (400, "invalid_value")),
        (b'{"query": "a", "documents": ["b"], "model": 3}', {}, (400, "invalid_value")),
        (b'{"query": "a", "documents": ["b"], "rank_fields": [1]}', {}, (400, "invalid_value")),
        (b'{"query": "a", "documents": [{"doc_id": 1}]}', {}, (400, "no_index")),
        (b"{}", {"Content_Type": "text/plain"}, (415, "content_type")),
        (b"{}", {"Content_Type": "multipart/form-data; boundary=x"}, (415, "content_type")),
        (b"{}", {"Content_Type": "application/json; charset=latin-1"}, (415, "content_type")),
        (b"{}", {"Content_Encoding": "gzip"}, (415, "content_encoding")),
    ],
)
def test_what_cannot_be_used_is_refused(server, body, headers, expected):
    assert code_of(server.post("/v1/rerank", body, **headers)) == expected


def test_an_error_has_the_form_that_all_clients_read(server):
    answer = server.post("/v1/rerank", {"query": "a"}, X_Request_Id="my-id")
    message = "documents is missing; send a list of items"
    assert answer.json() == {
        "error": {
            "message": message,
            "type": "invalid_request_error",
            "param": "documents",
            "code": "missing_field",
        },
        "message": message,
        "detail": message,
        "object": "error",
        "id": "my-id",
    }
    assert answer.headers["X-Request-Id"] == "my-id"


@pytest.mark.parametrize(
    ("failure", "expected", "retry"),
    [
        (QueueFull(2.5), (429, "queue_full"), "3"),
        (NotReady("the service is draining"), (503, "not_ready"), "1"),
        (DeadlineExceeded("late"), (504, "deadline_exceeded"), None),
        (EngineFailed("secret"), (503, "engine_failed"), "1"),
        (EngineDied("secret"), (503, "engine_failed"), "1"),
        (RequestTooLarge("a prompt of 9 rows"), (413, "max_prompt_rows"), None),
        (ItemError("candidate 0: bad"), (400, "bad_item"), None),
        (ValueError("fast mode has no votes"), (400, "invalid_options"), None),
        (FloatingPointError("secret"), (500, "internal_error"), None),
        (RuntimeError("secret"), (500, "internal_error"), None),
        (KeyError("secret"), (500, "internal_error"), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failed_ranking_has_its_status_and_keeps_its_secrets(failure, expected, retry, caplog):
    with caplog.at_level(logging.INFO), double(failure=failure) as server:
        answer = server.post("/v1/rerank", ASK)
    assert code_of(answer) == expected
    assert answer.headers.get("Retry-After") == retry
    assert "secret" not in answer.text and "Traceback" not in answer.text
    failed = [record for record in caplog.records if record.levelname == "ERROR"]
    assert bool(failed) == (expected[0] == 500)


def test_a_value_error_of_the_server_itself_stays_inside(monkeypatch):
    def fail(*_: Any) -> Any:
        raise ValueError("secret")

    monkeypatch.setattr("retrv_r1.serve.ranking.replace", fail)
    with double() as server:
        answer = server.post("/v1/rerank", ASK)
    assert code_of(answer) == (500, "internal_error") and "secret" not in answer.text


def test_a_request_past_its_deadline_is_cancelled():
    async def forever() -> None:
        await asyncio.sleep(60)

    with double(Settings(deadline=0.1), pause=forever) as server:
        assert code_of(server.post("/v1/rerank", ASK)) == (504, "deadline_exceeded")
        assert server.service.cancelled == 1


@pytest.mark.parametrize("stream", [False, True])
def test_budget_and_deadline_begin_when_the_request_comes(stream):
    class Slow:
        async def read(self, value: str, held: Any) -> Any:
            await asyncio.sleep(0.2)
            return SimpleNamespace(image=Image.new("RGB", (8, 8)))

    service = ServiceDouble()
    ask = {**ASK, "query": {"image": "A"}, "retrv": {"budget_ms": 10_000, "stream": stream}}
    with Server(Settings(deadline=20), service, pictures=Slow()) as server:
        assert server.post("/v1/rerank", ask).status_code == 200
        assert server.post("/v1/rerank", {**ask, "retrv": {"budget_ms": 1}}).status_code == 200
    first, second = service.calls
    assert first.budget_ms and first.deadline_ms
    assert 0 < first.budget_ms <= 9800 and 0 < first.deadline_ms <= 19_800
    assert second.budget_ms == 0, "the pictures took all of it"


def test_a_client_that_hangs_up_cancels_its_ranking(caplog):
    async def check() -> HangingUp:
        started = asyncio.Event()

        async def forever() -> None:
            started.set()
            await asyncio.sleep(60)

        server.service.pause = forever
        client = HangingUp("/v1/rerank", ASK)
        call = asyncio.create_task(server.app(client.scope, client.receive, client.send))
        await started.wait()
        client.gone.set()
        await asyncio.wait_for(call, 10)
        return client

    with caplog.at_level(logging.INFO, "retrv_r1.serve"), double() as server:
        client = server.run(check())
        assert client.status == 499 and server.service.cancelled == 1
    lines = [vars(r)["request"] for r in caplog.records if hasattr(r, "request")]
    assert [(line["status"], line["code"]) for line in lines] == [(499, "client_closed_request")]


def test_the_first_error_of_many_lists_cancels_the_others():
    async def hang() -> None:
        if len(server.service.calls) == 3:
            raise EngineFailed("now")
        await asyncio.sleep(60)

    with double(pause=hang) as server:
        pairs = {"text_1": ["a", "b", "c", "d"], "text_2": ["1", "2", "3", "4"]}
        assert server.post("/score", pairs).status_code == 503
        assert server.service.cancelled == len(server.service.calls) - 1


def test_other_models_are_answered_with_a_warning_or_not_at_all(server):
    named = {**ASK, "model": "rerank-v3.5"}
    body = server.post("/v1/rerank", named).json()
    assert body["model"] == "tiny"
    assert body["warnings"] == ["another model was asked for; tiny has answered"]
    with double(Settings(strict_model=True)) as strict:
        assert code_of(strict.post("/v1/rerank", named)) == (404, "model_not_found")
        assert strict.post("/v1/rerank", {**ASK, "model": "tiny"}).status_code == 200
        assert strict.post("/v1/rerank", ASK).status_code == 200


def test_nothing_is_answered_while_the_model_is_loaded():
    service = ServiceDouble()
    service.reranker, service.state = None, "loading"
    with Server(None, service) as server:
        for answer in (server.get("/health"), server.post("/v1/rerank", ASK)):
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
        assert server.get("/info").json()["model_id"] == "tiny"


def test_health_follows_the_service(server):
    assert server.get("/health").json() == {"status": "ready"}
    server.service.state = "draining"
    try:
        answer = server.get("/health")
    finally:
        server.service.state = "ready"
    assert (answer.status_code, answer.json()) == (503, {"status": "draining"})


def test_info_is_what_clients_of_tei_ask_for(server):
    info = server.get("/info").json()
    assert "reranker" in info["model_type"]
    assert info["max_client_batch_size"] == 1000 and info["max_input_length"] == 4096
    assert info["default_mode"] == "fast"
    assert server.get("/v1/models").json()["data"][0]["id"] == "tiny"


def test_metrics_count_requests_by_dialect_and_route():
    with double() as server:
        server.post("/v2/rerank", ASK)
        server.post("/sglang/v1/rerank", ASK)
        text = server.get("/metrics").text
    assert 'retrv_requests_total{dialect="cohere",route="/v2/rerank",status="200"} 1.0' in text
    prefixed = 'dialect="sglang",route="/sglang/{path:path}",status="200"} 1.0'
    assert prefixed in text and "retrv_ready 1.0" in text


@pytest.mark.parametrize("path", ["/health", "/info", "/v1/models", "/metrics", "/openapi.json"])
def test_a_route_that_answers_get_answers_head(server, path):
    assert server.run(server.client.head(path)).status_code == 200
    assert server.post(path, ASK).status_code == 405


def test_wrong_routes_and_methods_are_answered_as_errors(server):
    assert code_of(server.get("/v1/rerank")) == (405, "method_not_allowed")
    assert code_of(server.get("/v1/nothing")) == (404, "no_such_route")
    assert code_of(server.post("/v1/rerank/", ASK)) == (404, "no_such_route")
    assert code_of(server.post("/sglang/v1/score", ASK)) == (404, "no_such_route")
    assert code_of(server.get("/docs")) == (404, "no_such_route")  # it would load from elsewhere


def test_the_openapi_document_has_every_route_and_an_example_of_every_dialect(server):
    document = server.get("/openapi.json").json()
    assert set(document["paths"]) >= {*RERANK_PATHS, *SCORE_PATHS, "/health", "/info", "/metrics"}
    post = document["paths"]["/v1/rerank"]["post"]
    asked = post["requestBody"]["content"]["application/json"]["examples"]
    answered = post["responses"]["200"]["content"]["application/json"]["examples"]
    assert set(asked) == set(answered) >= {"cohere", "jina", "voyage", "tei", "sglang", "infinity"}
    assert {"400", "401", "405", "413", "422", "429", "503", "504"} <= set(post["responses"])
    score = document["paths"]["/score"]["post"]["requestBody"]["content"]["application/json"]
    assert {"queries", "documents", "data_1", "data_2"} <= set(score["schema"]["properties"])
    assert "WWW-Authenticate" in post["responses"]["401"]["headers"]
    assert "securitySchemes" not in document.get("components", {})


def test_an_address_that_ends_with_a_slash_is_found():
    with double(Settings(keys=Keys.of(["a-key-of-mine"]))) as server:
        key = {"X_API_Key": "a-key-of-mine"}
        for path in ("//v2/rerank", "/sglang//v1/rerank", "///v1//rerank"):
            assert server.post(f"http://test{path}", ASK, **key).status_code == 200
            assert server.post(f"http://test{path}", ASK).status_code == 401
        assert server.get("http://test//health").status_code == 200
        assert server.get("http://test//page//../info").status_code in (401, 404)


def test_a_large_answer_is_that_of_a_small_one(server, monkeypatch):
    """Only that others are answered while it is encoded."""
    content = {"é": ['\ud83d\n"', 1.5, 1e-9, None, True, {}, []], "b": {"c": 3}}
    assert asyncio.run(sending.encode_beside(content)) == sending.encode(content)
    encoded: list[Any] = []
    beside = sending.encode_beside
    monkeypatch.setattr(sending, "encode_beside", lambda c: encoded.append(c) or beside(c))
    small = server.post("/v1/rerank", ASK).json()
    assert not encoded
    monkeypatch.setattr(sending, "LARGE", 1)
    large = server.post("/v1/rerank", ASK).json()
    assert len(encoded) == 1 and large["results"] == small["results"]


def test_ids_of_requests_are_plain_words(server):
    answer = server.post("/v1/rerank", ASK, X_Request_Id="a\tb<script>")
    assert answer.headers["X-Request-Id"] == answer.json()["id"] != "a\tb<script>"


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"dialect": "klingon"}, "no dialect"),
        ({"cors": ("example.org",)}, "an origin"),
        ({"deadline": 0.0}, "deadline must be"),
        ({"drain": -1.0}, "drain must be"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(values, part):
    with pytest.raises(RetrvError, match=part):
        Settings(**values)
    with pytest.raises(ValueError, match="max_documents must be above 0"):
        Limits(max_documents=0)
