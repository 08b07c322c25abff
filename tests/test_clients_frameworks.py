"""Rerank classes of LangChain, LlamaIndex and Haystack that call a service, unmodified."""

from __future__ import annotations

import pytest
from client_tools import KEY, QUERY, TEXTS, client_library

pytest_plugins = "client_fixtures"


@pytest.fixture
def langchain_documents():
    documents = client_library("langchain_core.documents")
    return [documents.Document(text, metadata={"number": k}) for k, text in enumerate(TEXTS)]


def told(documents):
    return [(d.metadata["number"], d.metadata["relevance_score"]) for d in documents]


def test_langchain_cohere(served, langchain_documents):
    client_library("langchain_cohere")
    from langchain_cohere import CohereRerank

    compressor = CohereRerank(model="rerank-v3.5", cohere_api_key=KEY, base_url=served.url, top_n=2)
    assert served.agrees(told(compressor.compress_documents(langchain_documents, QUERY)), 2)


def test_langchain_jina(served, langchain_documents, monkeypatch):
    """The class takes no address: its module's constant is all that can be changed."""
    module = client_library("langchain_community.document_compressors.jina_rerank")
    monkeypatch.setattr(module, "JINA_API_URL", f"{served.url}/v1/rerank")
    compressor = module.JinaRerank(jina_api_key=KEY, top_n=2)
    assert served.agrees(told(compressor.compress_documents(langchain_documents, QUERY)), 2)
    with pytest.raises(RuntimeError, match="API key"):
        module.JinaRerank(jina_api_key="wrong").compress_documents(langchain_documents, QUERY)


@pytest.fixture
def nodes():
    schema = client_library("llama_index.core.schema")
    made = [schema.TextNode(text=text, id_=str(k)) for k, text in enumerate(TEXTS)]
    return [schema.NodeWithScore(node=node, score=0.5) for node in made]


def ranked(nodes):
    return [(int(one.node.node_id), one.score) for one in nodes]


def test_llama_index_jina(served, nodes):
    client_library("llama_index.postprocessor.jinaai_rerank")
    from llama_index.postprocessor.jinaai_rerank import JinaRerank

    postprocessor = JinaRerank(top_n=3, base_url=f"{served.url}/v1", api_key=KEY)
    assert served.agrees(ranked(postprocessor.postprocess_nodes(nodes, query_str=QUERY)), 3)


def test_llama_index_cohere(served, nodes):
    client_library("llama_index.postprocessor.cohere_rerank")
    from llama_index.postprocessor.cohere_rerank import CohereRerank

    postprocessor = CohereRerank(top_n=3, base_url=served.url, api_key=KEY)
    assert served.agrees(ranked(postprocessor.postprocess_nodes(nodes, query_str=QUERY)), 3)


def test_llama_index_text_embeddings_inference(served, nodes):
    client_library("llama_index.postprocessor.tei_rerank")
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

    postprocessor = TextEmbeddingInference(top_n=3, base_url=served.url, auth_token=f"Bearer {KEY}")
    assert served.agrees(ranked(postprocessor.postprocess_nodes(nodes, query_str=QUERY)), 3)


@pytest.mark.parametrize("service", ["jina", "cohere"])
def test_haystack(served, monkeypatch, service):
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
    haystack = client_library("haystack")
    from haystack.utils import Secret

    module = client_library(f"haystack_integrations.components.rankers.{service}")
    key = Secret.from_token(KEY)
    if service == "jina":
        ranker = module.JinaRanker(api_key=key, base_url=f"{served.url}/v1/rerank", top_k=3)
    else:
        ranker = module.CohereRanker(api_key=key, api_base_url=served.url, top_k=3)
    documents = [haystack.Document(content=text, id=str(k)) for k, text in enumerate(TEXTS)]
    pipeline = haystack.Pipeline()
    pipeline.add_component("ranker", ranker)
    answer = pipeline.run({"ranker": {"query": QUERY, "documents": documents}})
    assert served.agrees([(int(d.id), d.score) for d in answer["ranker"]["documents"]], 3)
