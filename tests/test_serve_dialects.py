"""A client of each rerank service finds its own fields, whatever route and form it uses."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from serve_app import Server, ServiceDouble, double, png

from retrv_r1.serve.dialects import DIALECTS, RERANK_PATHS, choose
from retrv_r1.serve.settings import Settings

DOCUMENTS = ["pear", "red apple", "a car"]
ASK = {"query": "apple", "documents": DOCUMENTS}
BEST = (1, 0.5)


@pytest.fixture(scope="module", name="server")
def shared() -> Iterator[Server]:
    with double() as server:
        yield server


@pytest.mark.parametrize(
    ("path", "fields", "name"),
    [
        ("/v2/rerank", {}, "cohere"),
        ("/v1/rerank", {}, "jina"),
        ("/v1/rerank", {"return_documents": False, "top_n": 2}, "jina"),
        ("/v1/rerank", {"rank_fields": ["title"]}, "cohere-v1"),
        ("/v1/rerank", {"max_chunks_per_doc": 3}, "cohere-v1"),
        ("/v1/rerank", {"top_k": None, "truncation": True}, "voyage"),
        ("/v1/rerank", {"top_k": 2}, "voyage"),
        ("/v1/rerank", {"truncation": False}, "jina"),
        ("/v1/rerank", {"top_k": 2, "top_n": 2}, "jina"),
        ("/rerank", {"truncate_prompt_tokens": 5}, "jina"),
        ("/rerank", {"raw_scores": False}, "infinity"),
        ("/v1/reranks", {}, "jina"),
        ("/reranking", {}, "llamacpp"),
        ("/v1/reranking", {}, "llamacpp"),
    ],
)
def test_route_and_fields_tell_the_dialect(path, fields, name):
    assert choose(path, {**ASK, **fields}).name == name


@pytest.mark.parametrize("path", RERANK_PATHS)
def test_texts_select_tei(path):
    expected = "cohere" if path == "/v2/rerank" else "tei"
    assert choose(path, {"query": "a", "texts": ["b"]}).name == expected


def test_the_score_routes_have_one_form_whatever_is_forced():
    assert choose("/score", {}, "sglang").name == choose("/v1/score", {}).name == "score"


def test_cohere_v2_gets_its_meta_and_no_documents(server):
    ask = {**ASK, "model": "rerank-v3.5", "top_n": 2, "return_documents": True}
    body = server.post("/v2/rerank", ask).json()
    assert [(r["index"], r["relevance_score"]) for r in body["results"]] == [(1, 0.5), (2, 0.25)]
    assert all(set(row) == {"index", "relevance_score"} for row in body["results"])
    assert body["meta"]["api_version"] == {"version": "2"}
    assert body["meta"]["billed_units"] == {"search_units": 1}
    assert body["meta"]["tokens"] == {"input_tokens": 44, "output_tokens": 12}
    assert body["id"]


def test_the_superset_has_what_jina_cohere_v1_vllm_and_voyage_read(server):
    body = server.post("/v1/rerank", ASK).json()
    first = body["results"][0]
    assert (first["index"], first["relevance_score"]) == BEST
    assert first["document"] == {"text": "red apple"}
    assert body["data"][0] == {"index": 1, "relevance_score": 0.5}
    assert body["usage"] == {
        "prompt_tokens": 44,
        "completion_tokens": 12,
        "total_tokens": 56,
        "image_tokens": 3,
        "cached_tokens": 8,
    }
    assert (body["object"], body["model"]) == ("rerank", "tiny")
    assert body["meta"]["api_version"] == {"version": "1"}
    assert body["retrv"]["none_of_these"] == 0.25
    assert body["retrv"]["answer"] == 1 and body["retrv"]["bill"]["seconds"] == {"total": 0.5}


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ({}, {"text": ""}),
        ({"return_documents": False}, None),
        (
            {"return_documents": True},
            {"text": "", "multi_modal": [{"type": "image_url", "image_url": {"url": png("red")}}]},
        ),
    ],
)
def test_pictures_are_repeated_on_demand_only(server, asked, shown):
    body = server.post(
        "/v1/rerank", {"query": "a", "documents": [{"image": png("red")}], **asked}
    ).json()
    assert body["results"][0].get("document") == shown


def test_cohere_v1_repeats_documents_on_demand(server):
    ask = {**ASK, "max_chunks_per_doc": 10}
    assert "document" not in server.post("/v1/rerank", ask).json()["results"][0]
    body = server.post("/v1/rerank", {**ask, "return_documents": True}).json()
    assert body["results"][0]["document"] == {"text": "red apple"}


def test_cohere_v1_repeats_objects_whole(server):
    documents = [{"title": "x", "year": "1"}, {"title": "yy", "text": "Berlin", "meta": [1]}]
    ask = {"query": "a", "documents": documents, "rank_fields": ["title", "text"]}
    body = server.post("/v1/rerank", {**ask, "return_documents": True}).json()
    assert [row["document"] for row in body["results"]] == documents[::-1]
    del ask["rank_fields"], documents[0]
    body = server.post("/v1/rerank", {**ask, "return_documents": True}).json()
    assert body["results"][0]["document"] == documents[0]


def test_a_picture_that_was_sent_as_a_text_has_a_warning(server):
    ask = {"query": png("red"), "documents": [png("red"), "a", png("blue")]}
    body = server.post("/v1/rerank", ask).json()
    assert [line.partition(":")[0] for line in body["warnings"]] == [
        "query",
        "documents[0] and 1 more",
    ]
    assert all('{"image": …}' in line for line in body["warnings"])


def test_one_wording_of_the_task_counts():
    service = ServiceDouble()
    ask = {**ASK, "instruction": "first", "instruct": "second"}
    with Server(None, service) as server:
        warnings = server.post("/v1/rerank", ask).json()["warnings"]
        own = server.post("/v1/rerank", {**ask, "retrv": {"instruction": "own"}}).json()["warnings"]
    assert [call.instruction for call in service.calls] == ["first", "own"]
    assert warnings == ["instruct has no effect beside instruction"]
    assert own == [
        f"{name} has no effect beside retrv.instruction" for name in ("instruction", "instruct")
    ]


def test_bare_base64_is_repeated_as_a_data_uri(server):
    bare = png("red").partition(",")[2]
    ask = {"query": "a", "documents": [{"image": bare.rstrip("=")}], "return_documents": True}
    (row,) = server.post("/v1/rerank", ask).json()["results"]
    assert row["document"]["multi_modal"][0]["image_url"]["url"] == png("red")


def test_voyage_finds_data_and_total_tokens(server):
    ask = {**ASK, "top_k": 1, "truncation": True, "return_documents": True}
    body = server.post("/v1/rerank", ask).json()
    assert body["data"] == [{"index": 1, "relevance_score": 0.5, "document": "red apple"}]
    assert body["usage"]["total_tokens"] == 56 and body["object"] == "list"


def test_tei_gets_a_bare_array(server):
    ask = {"query": "apple", "texts": DOCUMENTS, "return_text": True}
    assert server.post("/rerank", ask).json()[0] == {"index": 1, "score": 0.5, "text": "red apple"}
    answer = server.post("/rerank", {"query": "a", "texts": DOCUMENTS, "raw_scores": True})
    assert set(answer.json()[0]) == {"index", "score"}
    assert "raw_scores" in json.loads(answer.headers["X-Retrv-Warnings"])[0]


def test_a_bare_array_says_in_a_header_which_texts_were_cut(server):
    # The double says that it has cut document 9.
    for path, field in (("/rerank", "texts"), ("/sglang/v1/rerank", "documents")):
        answer = server.post(path, {"query": "a", field: ["b"] * 12})
        (warning,) = json.loads(answer.headers["X-Retrv-Warnings"])
        assert warning == f"only the first 4096 tokens were read of {field}[9]"


def test_a_header_has_as_many_whole_warnings_as_fit(server):
    ask = {"query": "a", "texts": ["b"], **{f"é{number}" * 30: 1 for number in range(30)}}
    text = server.post("/rerank", ask).headers["X-Retrv-Warnings"]
    *whole, last = json.loads(text)
    assert 1500 < len(text) <= 2000 and last == f"{20 - len(whole)} more warnings"
    assert all(line.startswith("unknown field ignored: é") for line in whole)


def test_tei_gets_its_own_errors(server):
    answer = server.post("/rerank", {"query": 5, "texts": DOCUMENTS})
    assert answer.status_code == 422
    assert answer.json() == {
        "error": "query is number, not an item; send a string, "
        '{"text", "image"}, {"content": [parts]} or [parts]',
        "error_type": "Validation",
    }


def test_infinity_gets_documents_as_strings(server):
    ask = {**ASK, "raw_scores": False, "return_documents": True}
    body = server.post("/rerank", ask).json()
    assert body["results"][0] == {"index": 1, "relevance_score": 0.5, "document": "red apple"}


def test_llama_cpp_gets_a_list(server):
    body = server.post("/reranking", {**ASK, "top_n": 1}).json()
    assert body["object"] == "list" and body["results"][0]["index"] == 1


@pytest.mark.parametrize("way", ["header", "path"])
def test_a_client_can_name_its_dialect(server, way):
    if way == "header":
        answer = server.post("/v1/rerank", ASK, X_Retrv_Dialect="sglang")
    else:
        answer = server.post("/sglang/v1/rerank", ASK)
    first = answer.json()[0]
    assert (first["score"], first["document"], first["index"]) == (0.5, "red apple", 1)
    assert first["meta_info"]["prompt_tokens"] == 44


def test_the_server_can_be_set_to_a_dialect():
    with double(Settings(dialect="sglang")) as server:
        assert isinstance(server.post("/v1/rerank", ASK).json(), list)
        wrong = server.post("/v1/rerank", {"documents": ["a"]})
        assert wrong.status_code == 400 and wrong.json()["code"] == 400
        named = server.post("/v1/rerank", ASK, X_Retrv_Dialect="jina")
        assert named.json()["object"] == "rerank"


def test_an_unknown_dialect_is_refused(server):
    answer = server.post("/v1/rerank", ASK, X_Retrv_Dialect="klingon")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_dialect")
    assert server.post("/klingon/v1/rerank", ASK).status_code == 404
    assert server.post("/sglang/v1/models", ASK).status_code == 404


@pytest.mark.parametrize("count", [None, 0, 5, 5.0, 10**30])
def test_no_count_zero_and_more_than_there_are_mean_all(server, count):
    body = server.post("/v1/rerank", {**ASK, "top_n": count}).json()
    assert [row["index"] for row in body["results"]] == [1, 2, 0]


@pytest.mark.parametrize(
    ("count", "words"), [(-1, "must be 0 (all) or more"), (1.5, "whole number")]
)
def test_a_count_that_cannot_be_used_is_refused(server, count, words):
    error = server.post("/v1/rerank", {**ASK, "top_n": count}).json()["error"]
    assert error["param"] == "top_n" and words in error["message"]


def test_an_object_with_parts_is_a_list_of_documents(server):
    parts = [{"type": "text", "text": text} for text in DOCUMENTS]
    body = server.post("/rerank", {"query": "a", "documents": {"content": parts}}).json()
    assert [row["document"]["text"] for row in body["results"]] == ["red apple", "a car", "pear"]


def test_ids_order_and_duplicates_are_kept():
    service = ServiceDouble()
    documents = [{"text": "same", "id": "x"}, "same", {"text": "same", "id": 0}]
    with Server(None, service) as server:
        body = server.post("/v1/rerank", {"query": "a", "documents": documents}).json()
    assert [c.id for c in service.calls[0].candidates] == ["x", None, 0]
    assert [row["index"] for row in body["results"]] == [0, 1, 2]
    assert [row.get("id") for row in body["results"]] == ["x", None, 0]


def test_fields_without_effect_are_listed(server):
    documents = [{"text": "a", "title": "t"}, {"text": "b", "title": "u"}]
    ask = {"query": "apple", "max_tokens_per_doc": 10, "colour": "red", "retrv": {"mood": 1}}
    ask |= {"user": None, "documents": documents}
    warnings = server.post("/v1/rerank", ask).json()["warnings"]
    assert warnings == [
        "max_tokens_per_doc has no effect here",
        "unknown field ignored: colour",
        "unknown field ignored: retrv.mood",
        "unknown field ignored: documents[].title",
    ]


def test_very_many_unknown_fields_are_counted(server):
    ask = {**ASK, **{f"field{number}": 1 for number in range(1000)}}
    warnings = server.post("/v1/rerank", ask).json()["warnings"]
    assert len(warnings) == 20 and warnings[-1] == "981 more fields are ignored"


def test_options_reach_the_service():
    service = ServiceDouble()
    options = {
        "mode": "reason",
        "max_inspections": 2,
        "max_reasoning_tokens": 64,
        "votes": 3,
        "budget_ms": 250,
        "reading": "full",
        "instruction": "Find the icon.",
    }
    with Server(None, service) as server:
        assert server.post("/v1/rerank", {**ASK, "retrv": options}).status_code == 200
    (call,) = service.calls
    budget = call.budget_ms
    assert {name: getattr(call, name) for name in options} == options | {"budget_ms": budget}
    assert budget is not None and 0 <= budget < 250, "what is left of it"
    assert call.deadline_ms is not None and 0 < call.deadline_ms <= 60_000


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ([], "retrv"),
        ("fast", "retrv"),
        ({"mode": "think"}, "retrv.mode"),
        ({"mode": ["fast"]}, "retrv.mode"),
        ({"max_inspections": -1}, "retrv.max_inspections"),
        ({"max_inspections": 1.5}, "retrv.max_inspections"),
        ({"max_reasoning_tokens": 10**9}, "retrv.max_reasoning_tokens"),
        ({"votes": True}, "retrv.votes"),
        ({"votes": 1000}, "retrv.votes"),
        ({"budget_ms": 0}, "retrv.budget_ms"),
        ({"stream": 1}, "retrv.stream"),
        ({"instruction": 1}, "retrv.instruction"),
    ],
)
def test_options_that_cannot_be_used_are_refused(server, options, param):
    answer = server.post("/v1/rerank", {**ASK, "retrv": options})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("threshold", "set_to", "retrv", "mode"),
    [
        (None, None, {}, "fast"),
        (0.9, None, {}, "auto"),
        (0.9, "reason", {}, "reason"),
        (0.9, None, {"mode": "fast"}, "fast"),
        (None, None, {"votes": 3}, "reason"),
        (0.9, None, {"votes": 3, "mode": "auto"}, "reason"),
    ],
)
def test_the_default_mode_is_the_checkpoints(threshold, set_to, retrv, mode):
    service = ServiceDouble(threshold=threshold)
    with Server(Settings(mode=set_to), service) as server:
        server.post("/v1/rerank", {**ASK, "retrv": retrv})
    assert service.calls[0].mode == mode


@pytest.mark.parametrize(("count", "status"), [(8, 200), (12, 413)])
def test_truncation_can_be_refused(server, count, status):
    # The double says that it has cut document 9, which top_n would hide.
    ask = {"query": "a", "documents": ["b"] * count, "top_k": 1, "truncation": False}
    answer = server.post("/v1/rerank", ask)
    assert answer.status_code == status
    assert server.post("/v1/rerank", {**ask, "truncation": True}).status_code == 200
    if status == 200:
        assert len(answer.json()["data"]) == 1
    else:
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("max_text_tokens", "documents[9]")
        assert "5000 tokens" in error["message"] and "--max-text-tokens" in error["message"]


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda one: one.name)
def test_the_example_of_each_dialect_runs(server, dialect):
    example = dialect.example()
    name = {} if dialect.name == "score" else {"X_Retrv_Dialect": dialect.name}
    answer = server.post(dialect.paths[0], dict(example.request), **name)
    assert answer.status_code == 200
    body, shown = answer.json(), example.response
    if isinstance(shown, dict):
        assert set(shown) <= set(body)
    else:
        assert set(shown[0]) <= set(body[0])
