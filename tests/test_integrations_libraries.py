"""Rankings inside LangChain, LlamaIndex, Haystack, rerankers and sentence-transformers."""

from __future__ import annotations

import asyncio
import base64
import io
from pathlib import Path
from typing import Any

import pytest
from client_tools import client_library

from retrv_r1 import ItemError, Reranker
from retrv_r1.integrations.cross_encoder import CrossEncoder

TEXTS = ["a red apple", "a blue bird", "an apple in the sky"]


@pytest.fixture(scope="module")
def reranker(model, processor):
    with Reranker(model, processor) as made:
        yield made


@pytest.fixture
def png(picture) -> bytes:
    file = io.BytesIO()
    picture(1).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def png_file(png, tmp_path) -> Path:
    (tmp_path / "one.png").write_bytes(png)
    return tmp_path / "one.png"


def expected(reranker, query, items, top_k=None):
    """Index and score of the best items, as the reranker itself ranks them."""
    ranking = reranker.rank(query, items, mode="fast", top_k=top_k)
    return [(row.index, pytest.approx(row.score, abs=1e-6)) for row in ranking]


def test_langchain_keeps_the_best_documents_and_leaves_them_as_they_were(reranker, png):
    documents = client_library("langchain_core.documents")
    from retrv_r1.integrations.langchain import RetrvCompressor

    given = [documents.Document(text, metadata={"number": k}) for k, text in enumerate(TEXTS)]
    given.append(documents.Document("", metadata={"number": 3, "image": png}))
    compressor = RetrvCompressor(reranker, top_n=3)
    found = compressor.compress_documents(given, "apple")
    wanted = expected(reranker, "apple", [*TEXTS, png], 3)
    assert [(d.metadata["number"], d.metadata["relevance_score"]) for d in found] == wanted
    assert [d.page_content for d in found] == [given[k].page_content for k, _ in wanted]
    assert not any("relevance_score" in document.metadata for document in given)
    again = asyncio.run(compressor.acompress_documents(given, "apple"))
    assert [d.metadata["number"] for d in again] == [k for k, _ in wanted]
    assert compressor.compress_documents([], "apple") == []
    with pytest.raises(ItemError, match="candidate 1"):
        compressor.compress_documents([given[0], documents.Document("")], "apple")


def test_langchain_retrieves_through_the_compressor(reranker):
    client_library("langchain_classic")
    from langchain_classic.retrievers import ContextualCompressionRetriever
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever

    from retrv_r1.integrations.langchain import RetrvCompressor

    class Everything(BaseRetriever):
        def _get_relevant_documents(self, query, *, run_manager):
            return [Document(text) for text in TEXTS]

    retriever = ContextualCompressionRetriever(
        base_retriever=Everything(), base_compressor=RetrvCompressor(reranker, top_n=1)
    )
    ((best, score),) = expected(reranker, "bird", TEXTS, 1)
    (found,) = retriever.invoke("bird")
    assert (found.page_content, found.metadata["relevance_score"]) == (TEXTS[best], score)


def test_llama_index_ranks_text_nodes_and_image_nodes(reranker, png, png_file):
    schema = client_library("llama_index.core.schema")
    from retrv_r1.integrations.llama_index import RetrvPostprocessor

    nodes = [
        *(schema.TextNode(text=text) for text in TEXTS),
        schema.ImageNode(image=base64.b64encode(png).decode()),
        schema.ImageNode(text=TEXTS[1], image_path=str(png_file)),
    ]
    given = [schema.NodeWithScore(node=node, score=0.5) for node in nodes]
    items = [*TEXTS, png, {"text": TEXTS[1], "image": png}]
    postprocessor = RetrvPostprocessor(reranker, top_n=4)
    found = postprocessor.postprocess_nodes(given, query_str="apple")
    numbers = {node.node_id: number for number, node in enumerate(nodes)}
    wanted = expected(reranker, "apple", items, 4)
    assert [(numbers[one.node.node_id], one.score) for one in found] == wanted
    assert all(one.score == 0.5 for one in given)

    asked = schema.QueryBundle("", image_path=str(png_file))
    found = postprocessor.postprocess_nodes(given, asked)
    wanted = expected(reranker, png_file, items, 4)
    assert [(numbers[one.node.node_id], one.score) for one in found] == wanted


def test_llama_index_fetches_no_picture(reranker):
    schema = client_library("llama_index.core.schema")
    from retrv_r1.integrations.llama_index import RetrvPostprocessor

    postprocessor = RetrvPostprocessor(reranker)
    remote = schema.ImageNode(id_="far", image_url="http://127.0.0.1:9/picture.png")
    with pytest.raises(ItemError, match="node far has only the address"):
        postprocessor.postprocess_nodes([schema.NodeWithScore(node=remote)], query_str="apple")
    damaged = schema.ImageNode(id_="bad", image="no base64!")
    with pytest.raises(ItemError, match="node bad: its image is not base64"):
        postprocessor.postprocess_nodes([schema.NodeWithScore(node=damaged)], query_str="apple")
    with pytest.raises(ValueError, match="needs a query"):
        postprocessor.postprocess_nodes([])


def test_haystack_runs_in_a_pipeline(reranker, png):
    haystack = client_library("haystack")
    from haystack.dataclasses import ByteStream

    from retrv_r1.integrations.haystack import RetrvRanker

    documents = [haystack.Document(content=text) for text in TEXTS]
    documents.append(haystack.Document(blob=ByteStream(png, mime_type="image/png")))
    pipeline = haystack.Pipeline()
    pipeline.add_component("ranker", RetrvRanker(reranker))
    found = pipeline.run({"ranker": {"query": "apple", "documents": documents, "top_k": 3}})
    numbers = {document.id: number for number, document in enumerate(documents)}
    ranked = [(numbers[d.id], d.score) for d in found["ranker"]["documents"]]
    assert ranked == expected(reranker, "apple", [*TEXTS, png], 3)
    assert all(document.score is None for document in documents)


def test_haystack_saves_a_ranker_with_a_named_model(reranker):
    haystack = client_library("haystack")
    from retrv_r1.integrations.haystack import RetrvRanker

    pipeline = haystack.Pipeline()
    pipeline.add_component("ranker", RetrvRanker("tiny", top_k=2, mode="reason"))
    saved = haystack.Pipeline.loads(pipeline.dumps(), allowed_modules=[RetrvRanker.__module__])
    loaded = saved.get_component("ranker")
    assert (loaded.model, loaded.top_k, loaded.mode) == ("tiny", 2, "reason")
    with pytest.raises(ValueError, match="name its model"):
        RetrvRanker(reranker).to_dict()


def test_rerankers_returns_its_own_results(reranker, png, png_file):
    library = client_library("rerankers")
    from retrv_r1.integrations.rerankers import RetrvRanker

    ranker = RetrvRanker(reranker)
    found = ranker.rank("apple", TEXTS, doc_ids=["a", "b", "c"])
    wanted = expected(reranker, "apple", TEXTS)
    assert [("abc".index(one.doc_id), one.score) for one in found] == wanted
    assert [one.rank for one in found] == [1, 2, 3] and found.has_scores

    encoded = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    documents = [
        library.Document(text=TEXTS[0], doc_id=0),
        library.Document(document_type="image", base64=encoded, doc_id=1),
        library.Document(document_type="image", image_path=str(png_file), text="x", doc_id=2),
    ]
    found = ranker.rank("apple", documents)
    items = [TEXTS[0], png, {"text": "x", "image": png}]
    assert [(one.doc_id, one.score) for one in found] == expected(reranker, "apple", items)
    assert ranker.rank("apple", []).results == []
    assert 0 <= ranker.score("apple", TEXTS[0]) <= 1


def test_sentence_transformers_evaluates_the_cross_encoder(reranker):
    evaluation = client_library("sentence_transformers.cross_encoder.evaluation")
    base: Any = evaluation.CrossEncoderRerankingEvaluator

    class Evaluator(base):
        def store_metrics_in_model_card_data(self, *_, **__):
            """Nothing: the card belongs to models that the library has trained."""

    samples = [
        {"query": query, "positive": TEXTS[:1], "negative": TEXTS[1:]} for query in ("apple", "sky")
    ]
    places = [
        [index for index, _ in expected(reranker, sample["query"], TEXTS)].index(0)
        for sample in samples
    ]
    found = Evaluator(samples, show_progress_bar=False)(CrossEncoder(reranker))
    assert found["mrr@10"] == pytest.approx(sum(1 / (1 + place) for place in places) / 2)
