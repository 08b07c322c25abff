"""Cohere's version 2, at a route of its own. Version 1 reads the superset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from retrv_r1.serve.dialects.base import Answer, Example, RerankDialect, meta_of
from retrv_r1.serve.schema.items import AskedItem


class CohereV2(RerankDialect):
    """``POST /v2/rerank``: documents are never repeated, values that cannot be used are 422."""

    name: ClassVar[str] = "cohere"
    title: ClassVar[str] = "Cohere v2"
    paths: ClassVar[tuple[str, ...]] = ("/v2/rerank",)
    invalid_status: ClassVar[int] = 422
    idle: ClassVar[frozenset[str]] = frozenset(
        {"max_tokens_per_doc", "priority", "relevant_spans", "max_chunks_per_doc"}
    )

    def accepts(self, path: str, body: Mapping[str, Any]) -> bool:
        return path == "/v2/rerank"

    def echo(self, answer: Answer, item: AskedItem) -> Any:
        return None

    def tail(self, answer: Answer) -> dict[str, Any]:
        return super().tail(answer) | {"meta": meta_of(answer, "2")}

    def example(self) -> Example:
        return Example(
            {
                "model": "tiny",
                "query": "a red apple",
                "documents": ["a green pear", "an apple that is red"],
                "top_n": 1,
            },
            {
                "id": "rerank-7d5c",
                "results": [{"index": 1, "relevance_score": 0.93}],
                "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
            },
        )
