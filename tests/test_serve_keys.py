"""Who may ask: API keys, and pages of other origins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from serve_app import Server, double

from retrv_r1.serve.auth import Keys, gather_keys
from retrv_r1.serve.dialects import RERANK_PATHS, SCORE_PATHS
from retrv_r1.serve.settings import Settings
from retrv_r1.types import RetrvError

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
    file.write_text("long-enough\n  # a comment\nshort\n")
    with pytest.raises(RetrvError, match=r"API key in line 3 of .* at least 8"):
        gather_keys([], file, {})
    with pytest.raises(RetrvError, match="API key 2 of RETRV_API_KEYS must"):
        gather_keys([], None, {"RETRV_API_KEYS": "long-enough,short"})
    file.write_text("\n")
    with pytest.raises(RetrvError, match="has no API key"):
        gather_keys([], file, {})


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


def test_the_openapi_document_says_how_keys_are_sent(locked):
    document = json.loads(locked.get("/openapi.json", headers={"X-API-Key": KEY}).text)
    schemes = document["components"]["securitySchemes"]
    assert {scheme["type"] for scheme in schemes.values()} == {"http", "apiKey"}
    assert document["security"] and document["paths"]["/health"]["get"]["security"] == []


@pytest.mark.parametrize("name", ["Authorization", "X-API-Key"])
def test_a_key_that_is_there_twice_is_refused(name):
    with double() as server:
        headers = [(name, "Bearer one"), (name, "Bearer two")]
        answer = server.run(server.client.post("/v1/rerank", content=b"{}", headers=headers))
    assert answer.status_code == 400 and name in answer.json()["error"]["message"]
