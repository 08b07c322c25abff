"""Clients of other rerank services, as they are, with nothing changed but their base address."""

from __future__ import annotations

import pytest
from client_tools import KEY, QUERY, TEXTS, client_library

pytest_plugins = "client_fixtures"

DOCUMENTS = list(TEXTS)


def pairs(results):
    return [(one.index, one.relevance_score) for one in results]


def test_cohere_version_2(served):
    cohere = client_library("cohere")
    client = cohere.ClientV2(KEY, base_url=served.url)
    answer = client.rerank(model="rerank-v3.5", query=QUERY, documents=DOCUMENTS, top_n=3)
    assert served.agrees(pairs(answer.results), 3)
    assert answer.meta.billed_units.search_units == 1 and answer.id


def test_cohere_version_1(served):
    cohere = client_library("cohere")
    client = cohere.Client(KEY, base_url=served.url)
    asked = dict(model="rerank-english-v3.0", query=QUERY, documents=DOCUMENTS)
    answer = client.rerank(**asked, return_documents=True)
    assert served.agrees(pairs(answer.results))
    assert [one.document.text for one in answer.results] == [
        DOCUMENTS[one.index] for one in answer.results
    ]
    fields = [{"title": text, "text": "unread"} for text in DOCUMENTS]
    answer = client.rerank(**asked | {"documents": fields}, rank_fields=["title"], top_n=2)
    assert len(answer.results) == 2


def test_cohere_raises_its_own_errors(served):
    cohere = client_library("cohere")
    with pytest.raises(cohere.UnauthorizedError) as refused:
        cohere.ClientV2("wrong", base_url=served.url).rerank(
            model="rerank-v3.5", query=QUERY, documents=DOCUMENTS
        )
    assert "API key" in refused.value.body["message"]
    with pytest.raises(cohere.UnprocessableEntityError) as invalid:
        cohere.ClientV2(KEY, base_url=served.url).rerank(
            model="rerank-v3.5", query=QUERY, documents=["a pear", ""]
        )
    assert "documents[1]" in invalid.value.body["message"]


def test_voyage(served):
    voyageai = client_library("voyageai")
    client = voyageai.Client(api_key=KEY, base_url=f"{served.url}/v1")
    answer = client.rerank(QUERY, DOCUMENTS, model="rerank-2.5", top_k=2)
    assert served.agrees(pairs(answer.results), 2)
    assert [one.document for one in answer.results] == [
        DOCUMENTS[one.index] for one in answer.results
    ]
    assert answer.total_tokens > 0
    with pytest.raises(voyageai.error.AuthenticationError, match="API key"):
        voyageai.Client(api_key="wrong", base_url=f"{served.url}/v1").rerank(
            QUERY, DOCUMENTS, model="rerank-2.5"
        )


@pytest.mark.parametrize(
    ("model", "prefix"),
    [
        ("cohere/rerank-v3.5", ""),
        ("jina_ai/jina-reranker-v2-base-multilingual", ""),
        ("hosted_vllm/BAAI/bge-reranker-v2-m3", ""),
        ("voyage/rerank-2.5", ""),
        ("infinity/rerank", "/infinity"),  # its requests do not tell that documents must be strings
    ],
)
def test_litellm(served, monkeypatch, model, prefix):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the network
    litellm = client_library("litellm")
    answer = litellm.rerank(
        model=model,
        query=QUERY,
        documents=DOCUMENTS,
        top_n=3,
        api_base=served.url + prefix,
        api_key=KEY,
    )
    assert served.agrees([(one["index"], one["relevance_score"]) for one in answer.results], 3)


@pytest.mark.parametrize(
    ("provider", "path"),
    [
        ("cohere", "/v1/rerank"),
        ("jina", "/v1/rerank"),
        ("voyage", "/v1/rerank"),
        ("text-embeddings-inference", "/rerank"),
    ],
)
def test_rerankers_api_form(served, provider, path):
    rerankers = client_library("rerankers")
    ranker = rerankers.Reranker(
        "any-model", model_type=provider, api_key=KEY, url=served.url + path, verbose=0
    )
    answer = ranker.rank(QUERY, DOCUMENTS)
    assert served.agrees([(one.doc_id, one.score) for one in answer])
