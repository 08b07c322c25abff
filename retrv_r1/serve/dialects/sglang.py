"""SGLang: a bare array, on demand, because its requests look like those of the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from retrv_r1.serve.dialects.base import Answer, BareDialect, Example, usage_of
from retrv_r1.serve.errors import ApiError, superset_body
from retrv_r1.serve.schema.asked import Echo
from retrv_r1.types import RankedItem


class Sglang(BareDialect):
    """Taken where the client, the address or the server's options name it."""

    name: ClassVar[str] = "sglang"
    title: ClassVar[str] = "SGLang"
    paths: ClassVar[tuple[str, ...]] = ("/v1/rerank",)
    echo_default: ClassVar[Echo] = "texts"

    def accepts(self, path: str, body: Mapping[str, Any]) -> bool:
        return False

    def row(self, answer: Answer, row: RankedItem) -> dict[str, Any]:
        result: dict[str, Any] = {"score": row.score, "index": row.index}
        if answer.asked.echo != "none":
            result["document"] = answer.document(row).text or ""
        usage = usage_of(answer.results)
        result["meta_info"] = {"id": answer.request_id, "prompt_tokens": usage["prompt_tokens"]}
        return result

    def error(self, error: ApiError, request_id: str) -> Any:
        about = {"type": error.type, "param": error.param, "code": error.status}
        return superset_body(error, request_id) | about

    def example(self) -> Example:
        return Example(
            {"query": "a red apple", "documents": ["a green pear", "an apple that is red"]},
            [
                {"score": 0.93, "document": "an apple that is red", "index": 1},
                {"score": 0.04, "document": "a green pear", "index": 0},
            ],
        )
