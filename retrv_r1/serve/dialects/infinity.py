"""Infinity: documents are repeated as strings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from retrv_r1.serve.dialects.base import Answer, Example, RerankDialect
from retrv_r1.serve.schema.items import AskedItem


class Infinity(RerankDialect):
    """Known by ``raw_scores``, which no other client sends together with ``documents``."""

    name: ClassVar[str] = "infinity"
    title: ClassVar[str] = "Infinity"
    paths: ClassVar[tuple[str, ...]] = ("/rerank",)
    idle: ClassVar[frozenset[str]] = frozenset({"raw_scores"})

    def accepts(self, path: str, body: Mapping[str, Any]) -> bool:
        return "raw_scores" in body and "documents" in body

    def echo(self, answer: Answer, item: AskedItem) -> Any:
        return None if answer.asked.echo == "none" else item.text or ""

    def example(self) -> Example:
        return Example(
            {
                "model": "tiny",
                "query": "a red apple",
                "documents": ["a green pear", "an apple that is red"],
                "raw_scores": False,
                "return_documents": True,
            },
            {
                "object": "rerank",
                "results": [
                    {"index": 1, "relevance_score": 0.93, "document": "an apple that is red"},
                    {"index": 0, "relevance_score": 0.04, "document": "a green pear"},
                ],
                "model": "tiny",
            },
        )
