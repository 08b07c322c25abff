"""llama.cpp's server, at its routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from retrv_r1.serve.dialects.base import Answer, Example, RerankDialect


class LlamaCpp(RerankDialect):
    """``/reranking`` and ``/v1/reranking``; with ``texts`` its form is that of TEI."""

    name: ClassVar[str] = "llamacpp"
    title: ClassVar[str] = "llama.cpp"
    paths: ClassVar[tuple[str, ...]] = ("/reranking", "/v1/reranking")

    def accepts(self, path: str, body: Mapping[str, Any]) -> bool:
        return path in self.paths

    def head(self, answer: Answer) -> dict[str, Any]:
        return super().head(answer) | {"object": "list"}

    def example(self) -> Example:
        return Example(
            {
                "model": "tiny",
                "query": "a red apple",
                "documents": ["a green pear", "an apple that is red"],
                "top_n": 1,
            },
            {
                "model": "tiny",
                "object": "list",
                "usage": {"prompt_tokens": 40, "total_tokens": 52},
                "results": [{"index": 1, "relevance_score": 0.93}],
            },
        )
