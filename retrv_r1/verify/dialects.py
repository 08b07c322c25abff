"""How the lists are asked for over HTTP in each dialect, and what its answers say.

Written from the clients' side: nothing here knows the server's code.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from retrv_r1.types import Item, RetrvError
from retrv_r1.verify.golden import Case, Outcome

HEADER = "X-Retrv-Dialect"

Body = dict[str, Any]


class BadAnswer(RetrvError):
    """A server's answer that is no ranking of the list."""


@dataclass(frozen=True)
class Form:
    """How a list is asked for.

    Args:
        name: name of the dialect.
        path: route.
        names: names of the query and of the documents in the body.
        more: further fields of the body, made from the number of documents.
        results: field with the results; None where they are the answer itself.
        score: name of a result's score.
        forced: whether only a header tells the dialect.
        ordered: whether results come best first; else in the order of the documents.
    """

    name: str
    path: str
    names: tuple[str, str] = ("query", "documents")
    more: Callable[[int], Body] = field(default=lambda count: {})
    results: str | None = "results"
    score: str = "relevance_score"
    forced: bool = False
    ordered: bool = True

    @property
    def headers(self) -> dict[str, str]:
        return {HEADER: self.name} if self.forced else {}

    def body(self, case: Case) -> Body:
        """The request's body."""
        query, documents = self.names
        values = [value_of(item) for item in case.asked.candidates]
        asked = {query: value_of(case.asked.query), documents: values}
        return asked | self.more(len(values)) | {"retrv": {"mode": case.mode}}

    def outcome(self, answer: Any, count: int) -> Outcome:
        """What an answer says about ``count`` documents.

        Raises:
            BadAnswer: results are missing, or a document is there twice or not at all.
        """
        rows: Any = (
            answer.get(self.results) if self.results and isinstance(answer, Mapping) else answer
        )
        try:
            scores = {int(row["index"]): float(row[self.score]) for row in rows}
        except (TypeError, KeyError, ValueError) as error:
            raise BadAnswer(
                f"the {self.name} dialect: no results in {str(answer)[:200]}"
            ) from error
        if len(rows) != count or sorted(scores) != [*range(count)]:
            raise BadAnswer(f"the {self.name} dialect: not every document has one result")
        own = answer.get("retrv") if isinstance(answer, Mapping) else None
        own = own if isinstance(own, Mapping) else {}
        inspected = own.get("inspected")
        return Outcome(
            tuple(scores) if self.ordered else None,
            tuple(scores[number] for number in range(count)),
            own.get("reasoning"),
            None if inspected is None else tuple(inspected),
        )


FORMS = (
    Form("superset", "/v1/rerank"),
    Form("cohere", "/v2/rerank"),
    Form("cohere-v1", "/v1/rerank", forced=True),
    Form("vllm", "/rerank", forced=True),
    Form("llamacpp", "/v1/reranking"),
    Form("infinity", "/rerank", more=lambda count: {"raw_scores": False}),
    Form(
        "voyage",
        "/v1/rerank",
        more=lambda count: {"top_k": count, "truncation": True},
        results="data",
    ),
    Form("tei", "/rerank", names=("query", "texts"), results=None, score="score"),
    Form("sglang", "/v1/rerank", results=None, score="score", forced=True),
    Form(
        "score",
        "/v1/score",
        names=("text_1", "text_2"),
        results="data",
        score="score",
        ordered=False,
    ),
)


def value_of(item: Item) -> str | Body:
    """An item as JSON: a string, or an object with its picture as a data URI."""
    if item.image is None:
        assert item.text is not None
        return item.text
    assert isinstance(item.image, Image.Image)
    file = io.BytesIO()
    item.image.save(file, "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"image": uri} | ({} if item.text is None else {"text": item.text})
