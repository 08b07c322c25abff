"""Voyage: ``top_k``, results under ``data``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from retrv_r1.serve.dialects.base import Answer, Example, RerankDialect, own_fields, usage_of
from retrv_r1.serve.schema.items import AskedItem


class Voyage(RerankDialect):
    """Known by ``top_k``, which Voyage's client always sends, null too."""

    name: ClassVar[str] = "voyage"
    title: ClassVar[str] = "Voyage"
    paths: ClassVar[tuple[str, ...]] = ("/v1/rerank",)
    count: ClassVar[tuple[str, ...]] = ("top_k", "top_n")
    truncation: ClassVar[tuple[str, ...]] = ("truncation",)

    def accepts(self, path: str, body: Mapping[str, Any]) -> bool:
        return "top_k" in body and "top_n" not in body

    def echo(self, answer: Answer, item: AskedItem) -> Any:
        return None if answer.asked.echo == "none" else item.text or ""

    def render(self, answers: Sequence[Answer]) -> Any:
        (answer,) = answers
        return {
            "object": "list",
            "data": [self.row(answer, row) for row in answer.results],
            "model": answer.results.model,
            "id": answer.request_id,
            "usage": usage_of(answer.results),
            **({"warnings": list(answer.asked.warnings)} if answer.asked.warnings else {}),
            "retrv": own_fields(answer),
        }

    def example(self) -> Example:
        return Example(
            {
                "model": "tiny",
                "query": "a red apple",
                "documents": ["a green pear", "an apple that is red"],
                "top_k": 1,
                "truncation": True,
            },
            {
                "object": "list",
                "data": [{"index": 1, "relevance_score": 0.93}],
                "model": "tiny",
                "usage": {"total_tokens": 52},
            },
        )
