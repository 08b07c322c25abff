"""Text Embeddings Inference: ``texts`` in, a bare array out, errors of its own form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from retrv_r1.serve.dialects.base import Answer, BareDialect, Example
from retrv_r1.serve.errors import ApiError
from retrv_r1.types import RankedItem

ERROR_TYPES = {
    400: "Validation",
    401: "Authentication",
    413: "Validation",
    415: "Validation",
    422: "Validation",
    429: "Overloaded",
    503: "Unhealthy",
}


class Tei(BareDialect):
    """Known by ``texts``."""

    name: ClassVar[str] = "tei"
    title: ClassVar[str] = "Text Embeddings Inference"
    paths: ClassVar[tuple[str, ...]] = ("/rerank",)
    documents: ClassVar[tuple[str, ...]] = ("texts", "documents")
    echo_field: ClassVar[str] = "return_text"
    truncation: ClassVar[tuple[str, ...]] = ("truncate",)
    idle: ClassVar[frozenset[str]] = frozenset({"raw_scores", "truncation_direction"})
    invalid_status: ClassVar[int] = 422

    def accepts(self, path: str, body: Mapping[str, Any]) -> bool:
        return "texts" in body and "documents" not in body

    def row(self, answer: Answer, row: RankedItem) -> dict[str, Any]:
        result: dict[str, Any] = {"index": row.index, "score": row.score}
        if answer.asked.echo != "none":
            result["text"] = answer.document(row).text or ""
        return result

    def error(self, error: ApiError, request_id: str) -> Any:
        return {"error": error.message, "error_type": ERROR_TYPES.get(error.status, "Backend")}

    def example(self) -> Example:
        return Example(
            {"query": "a red apple", "texts": ["a green pear", "an apple that is red"]},
            [{"index": 1, "score": 0.93}, {"index": 0, "score": 0.04}],
        )
