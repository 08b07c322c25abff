"""The HTTP server refuses what it must, never fails, and never says more than it should."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from serve_app import HangingUp, Server, ServiceDouble, double, png

from retrv_engine import DeadlineExceeded, EngineDied, RequestTooLarge
from retrv_r1.serve.auth import Keys, gather_keys
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


@pytest.fixture(scope="module", name="locked")
def with_keys() -> Iterator[Server]:
    with double(Settings(keys=Keys.of([KEY, "another-key-0"]))) as server:
        yield server


def code_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer  {KEY}"},
        {"X_API_Key": KEY},
        {"X_API_Key": "another-key-0"},
        {"Authorization": "Bearer wrong-key-00", "X_API_Key": KEY},
    ],
)
def test_a_key_opens_the_server(locked, headers):
    assert locked.post("/v1/rerank", ASK, **headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "no_api_key"),
        ({"Authorization": KEY}, "no_api_key"),
        ({"Authorization": f"Basic {KEY}"}, "no_api_key"),
        ({"Authorization": "Bearer "}, "no_api_key"),
        ({"Authorization": f"Bearer {KEY}x"}, "wrong_api_key"),
        ({"X_API_Key": KEY[:-1]}, "wrong_api_key"),
        ({"X_API_Key": "ü"}, "wrong_api_key"),
    ],
)
def test_without_a_key_nothing_is_read(locked, headers, code):
    coded = {name: value.encode("latin-1") for name, value in headers.items()}
    answer = locked.post("/v1/rerank", b"{not even JSON", **coded)
    assert code_of(answer) == (401, code)
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_only_health_and_the_page_are_open(locked):
    assert locked.get("/health").status_code == 200
    assert locked.get("/").status_code == 200
    for path in ("/info", "/v1/models", "/metrics", "/openapi.json", "/nowhere", "/health/"):
        assert locked.get(path).status_code == 401
    for path in (*RERANK_PATHS, *SCORE_PATHS, "/sglang/v1/rerank"):
        assert locked.post(path, ASK).status_code == 401


@pytest.mark.parametrize("key", ["short", "", "with a space in it", "ümlaut-key-0000", "a" * 7])
def test_a_key_that_cannot_be_used_is_refused_at_the_start(key):
    with pytest.raises(RetrvError, match="API key 1 must be"):
        Keys.of([key])


def test_keys_come_from_options_file_and_environment(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\nfrom-the-file\n\n")
    keys = gather_keys(["from-options"], file, {"RETRV_API_KEYS": "from-env-1, from-env-2"})
    for key in ("from-options", "from-the-file", "from-env-1", "from-env-2"):
        keys.check({"x-api-key": key})
    assert len(keys.digests) == 4 and "from-options" not in repr(keys)
    assert not gather_keys([], None, {})
    file.write_text("\n")
    with pytest.raises(RetrvError, match="has no API key"):
        gather_keys([], file, {})


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
    ("body", "limit"),
    [
        ({"query": "a", "documents": ["b"] * 6}, "max_documents"),
        ({"text_1": ["a"] * 6, "text_2": "b"}, "max_documents"),
        ({"query": "a", "documents": [{"image": png("red")}] * 4}, "max_pictures"),
        ({"query": "a" * 51, "documents": ["b"]}, "max_text_characters"),
        ({"query": "a" * 50, "documents": ["b" * 50, "c" * 50]}, "max_total_characters"),
        ({"query": "a", "documents": ["b"], "filler": "x" * 9000}, "max_body_bytes"),
    ],
)
def test_what_is_over_a_limit_gets_its_name(body, limit):
    limits = Limits(
        max_body_bytes=8000,
        max_documents=5,
        max_pictures=3,
        max_text_characters=50,
        max_total_characters=120,
    )
    with double(Settings(limits=limits)) as server:
        answer = server.post("/score" if "text_1" in body else "/v1/rerank", body)
        assert code_of(answer) == (413, limit)
        assert limit in answer.json()["message"]
        assert server.get("/info").json()["limits"][limit] == getattr(limits, limit)
        assert server.post("/v1/rerank", ASK).status_code == 200


def test_a_thousand_documents_and_a_hundred_pictures_are_within_the_limits():
    limits = Limits()
    assert limits.max_documents >= 1000 and limits.max_pictures >= 101


async def pieces(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b" " * 1000


def test_a_body_without_a_length_is_measured_while_it_comes():
    with double(Settings(limits=Limits(max_body_bytes=8000))) as server:
        headers = {"Content-Type": "application/json"}
        work = server.client.post("/v1/rerank", content=pieces(50), headers=headers)
        assert code_of(server.run(work)) == (413, "max_body_bytes")


def test_a_body_that_does_not_come_ends_the_request():
    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)

    with double(Settings(limits=Limits(body_seconds=0.1))) as server:
        headers = {"Content-Type": "application/json"}
        work = server.client.post("/v1/rerank", content=slow(), headers=headers)
        assert code_of(server.run(work)) == (408, "body_seconds")


def test_more_requests_than_the_server_holds_are_sent_away():
    async def both() -> list[Any]:
        started, go = asyncio.Event(), asyncio.Event()

        async def pause() -> None:
            started.set()
            await go.wait()

        server.service.pause = pause
        first = asyncio.create_task(server.client.post("/v1/rerank", json=ASK))
        await started.wait()
        second = await server.client.post("/v1/rerank", json=ASK)
        go.set()
        return [await first, second, await server.client.post("/v1/rerank", json=ASK)]

    with double(Settings(limits=Limits(max_requests=1))) as server:
        first, second, third = server.run(both())
    assert first.status_code == third.status_code == 200
    assert code_of(second) == (429, "server_busy") and second.headers["Retry-After"] == "1"


def test_bodies_of_all_requests_together_are_bounded():
    with double(Settings(limits=Limits(max_held_bytes=500))) as server:
        large = {**ASK, "filler": "x" * 600}
        assert code_of(server.post("/v1/rerank", large)) == (429, "server_busy")
        for _ in range(20):  # what was held is given back
            assert server.post("/v1/rerank", ASK).status_code == 200


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


def test_a_request_past_its_deadline_is_cancelled():
    async def forever() -> None:
        await asyncio.sleep(60)

    with double(Settings(deadline=0.1), pause=forever) as server:
        assert code_of(server.post("/v1/rerank", ASK)) == (504, "deadline_exceeded")
        assert server.service.cancelled == 1


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


def test_browsers_are_let_in_only_where_the_origin_is_named(server):
    asks = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    without = server.run(server.client.options("/v1/rerank", headers=asks))
    assert "access-control-allow-origin" not in without.headers
    assert "access-control-allow-origin" not in server.post("/v1/rerank", ASK, **asks).headers
    settings = Settings(cors=("https://a.example",), keys=Keys.of([KEY]))
    with double(settings) as open_to_one:
        allowed = open_to_one.run(open_to_one.client.options("/v1/rerank", headers=asks))
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
        refused = open_to_one.post("/v1/rerank", ASK, Origin="https://a.example")
        assert refused.status_code == 401  # which the page may read
        assert refused.headers["access-control-allow-origin"] == "https://a.example"
        other = {**asks, "Origin": "https://b.example"}
        answer = open_to_one.run(open_to_one.client.options("/v1/rerank", headers=other))
        assert "access-control-allow-origin" not in answer.headers


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
    assert {"400", "401", "413", "422", "429", "503", "504"} <= set(post["responses"])
    assert "securitySchemes" not in document.get("components", {})


def test_the_openapi_document_says_how_keys_are_sent(locked):
    document = json.loads(locked.get("/openapi.json", headers={"X-API-Key": KEY}).text)
    schemes = document["components"]["securitySchemes"]
    assert {scheme["type"] for scheme in schemes.values()} == {"http", "apiKey"}
    assert document["security"] and document["paths"]["/health"]["get"]["security"] == []


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
