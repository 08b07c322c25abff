"""Scores of pairs come in the order of the pairs, whatever lists they were ranked in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from serve_app import Server, ServiceDouble, double

from retrv_r1.serve.dialects import score
from retrv_r1.serve.limits import Limits

DOCUMENTS = ["pear", "red apple", "a car"]


@pytest.fixture(scope="module", name="server")
def shared() -> Iterator[Server]:
    with double() as server:
        yield server


def test_scores_keep_the_order_of_the_pairs(server):
    body = server.post("/v1/score", {"text_1": "apple", "text_2": DOCUMENTS}).json()
    assert [row["score"] for row in body["data"]] == [0.125, 0.5, 0.25]
    assert [row["index"] for row in body["data"]] == [0, 1, 2]
    assert all(row["object"] == "score" for row in body["data"])
    assert body["usage"]["total_tokens"] == 56


def test_pairs_of_one_query_are_ranked_together():
    service = ServiceDouble()
    with Server(None, service) as server:
        pairs = {"text_1": ["a", "b", "a"], "text_2": DOCUMENTS}
        body = server.post("/score", pairs).json()
    lists = {call.query.text: [c.text for c in call.candidates] for call in service.calls}
    assert lists == {"a": ["pear", "a car"], "b": ["red apple"]}
    assert [row["score"] for row in body["data"]] == [0.25, 0.5, 0.5]
    assert "warnings" not in body, "a pair is compared with none of these, too"
    assert {call.mode for call in service.calls} == {"fast"}


def test_a_query_of_many_pairs_is_read_once(monkeypatch):
    """Its picture may have megabytes, and there may be a thousand pairs."""
    dumped: list[object] = []
    dumps = score.json.dumps
    monkeypatch.setattr(
        score.json, "dumps", lambda value, **kw: dumped.append(value) or dumps(value, **kw)
    )
    query = {"image": "A" * 100}
    (asked,) = score.Score().parse({"text_1": query, "text_2": ["b"] * 50}, Limits())
    assert len(asked.documents) == 50 and asked.query.pictures == ("A" * 100,)
    assert dumped == [query]


def test_a_pair_alone_has_a_warning_where_the_model_has_no_label_for_none():
    service = ServiceDouble()
    service.none = None
    with Server(None, service) as server:
        alone = server.post("/score", {"text_1": ["a", "c"], "text_2": ["b", "d"]}).json()
        others = server.post("/score", {"text_1": "a", "text_2": ["b", "c"]}).json()
        ranked = [
            server.post(path, {"query": "a", "documents": ["b"]})
            for path in ("/v1/rerank", "/v2/rerank", "/reranking", "/sglang/v1/rerank")
        ]
    assert ["nothing to be compared with" in line for line in alone["warnings"]] == [True]
    assert all("nothing to be compared with" in each.text for each in ranked[:3])
    assert "nothing to be compared with" in ranked[3].headers["X-Retrv-Warnings"]
    assert "warnings" not in others


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1"),
        ({"text_1": "a"}, "text_2"),
        ({"text_1": [], "text_2": "b"}, "text_1"),
        ({"query": "a", "items": ["b"], "label_token_ids": [1]}, "label_token_ids"),
        ({"text_1": "a", "text_2": ["b"], "stream": True}, "stream"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(server, body, param):
    answer = server.post("/score", body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
