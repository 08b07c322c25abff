"""The form that Cohere v1, Jina, vLLM, Xinference and most others read, and their clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from retrv_r1.serve.dialects.base import Answer, Example, RerankDialect
from retrv_r1.serve.schema.asked import Echo
from retrv_r1.serve.schema.items import AskedItem


class Superset(RerankDialect):
    """What a request is taken for when nothing in it says more.

    Its response has every field that these clients read. That includes ``data``, which Voyage's
    clients read and which some of them ask for with nothing that tells them from the others.
    Documents' texts are repeated unless ``return_documents`` is false, because Jina and vLLM do
    so; their pictures only where it is true, because they are large.
    """

    name: ClassVar[str] = "jina"
    title: ClassVar[str] = "Jina, Cohere v1, vLLM, Xinference"
    paths: ClassVar[tuple[str, ...]] = ("/v1/rerank", "/rerank", "/v1/reranks")
    echo_default: ClassVar[Echo] = "texts"
    truncation: ClassVar[tuple[str, ...]] = ("truncation",)
    idle: ClassVar[frozenset[str]] = frozenset(
        {
            *("max_chunks_per_doc", "max_tokens_per_doc", "max_tokens_per_query", "priority"),
            *("truncate_prompt_tokens", "truncation_side", "return_embeddings", "user"),
            *("max_doc_length", "max_query_length", "encoding_format"),
        }
    )

    def accepts(self, path: str, body: Mapping[str, Any]) -> bool:
        return True

    def echo(self, answer: Answer, item: AskedItem) -> Any:
        """An object is repeated whole, as Cohere does; pictures have vLLM's form."""
        shown = super().echo(answer, item)
        if answer.asked.echo != "all" or item.sent is None or item.pictures:
            return shown
        return shown | item.sent

    def render(self, answers: Sequence[Answer]) -> Any:
        short = [{"index": r.index, "relevance_score": r.score} for r in answers[0].results]
        return super().render(answers) | {"data": short}

    def example(self) -> Example:
        return Example(
            {
                "model": "tiny",
                "query": "a red apple",
                "documents": ["a green pear", {"text": "an apple that is red"}],
                "top_n": 1,
                "retrv": {"mode": "reason", "max_inspections": 2, "budget_ms": 500},
            },
            {
                "id": "rerank-7d5c",
                "object": "rerank",
                "created": 1790000000,
                "model": "tiny",
                "results": [
                    {
                        "index": 1,
                        "relevance_score": 0.93,
                        "document": {"text": "an apple that is red"},
                    }
                ],
                "usage": {"prompt_tokens": 40, "completion_tokens": 12, "total_tokens": 52},
                "retrv": {"mode": "reason", "answer": 1, "inspected": [1], "cut": False},
            },
        )


class Vllm(Superset):
    """The same, for those who name vLLM as their dialect."""

    name: ClassVar[str] = "vllm"
    title: ClassVar[str] = "vLLM"
    paths: ClassVar[tuple[str, ...]] = ("/rerank",)

    def accepts(self, path: str, body: Mapping[str, Any]) -> bool:
        return False


class CohereV1(Superset):
    """The same, for those who name Cohere's version 1: documents are repeated on demand only."""

    name: ClassVar[str] = "cohere-v1"
    title: ClassVar[str] = "Cohere v1"
    paths: ClassVar[tuple[str, ...]] = ("/v1/rerank",)
    echo_default: ClassVar[Echo] = "none"

    def echo(self, answer: Answer, item: AskedItem) -> Any:
        if answer.asked.echo == "all" and item.sent is not None:
            return dict(item.sent)
        return super().echo(answer, item)

    def accepts(self, path: str, body: Mapping[str, Any]) -> bool:
        return "rank_fields" in body or "max_chunks_per_doc" in body
