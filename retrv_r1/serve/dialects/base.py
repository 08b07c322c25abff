"""What a dialect is, and what most of them share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Protocol

from retrv_r1.serve.errors import ApiError, invalid, superset_body
from retrv_r1.serve.limits import Limits
from retrv_r1.serve.picture_strings import as_address
from retrv_r1.serve.schema.asked import (
    Asked,
    Echo,
    check_totals,
    ignored_fields,
    read_item,
    read_items,
    read_options,
)
from retrv_r1.serve.schema.fields import Fields
from retrv_r1.serve.schema.items import AskedItem, ItemReader
from retrv_r1.types import RankedItem, RankedResults, TokenCounts

DOCUMENTS_PER_UNIT = 100
"""Documents that are one search unit, as Cohere counts."""


@dataclass(frozen=True)
class Answer:
    """A ranked request.

    Args:
        asked: the request.
        results: its ranking.
        request_id: id of the request; the response repeats it.
        created: Unix time.
    """

    asked: Asked
    results: RankedResults
    request_id: str
    created: int

    def document(self, row: RankedItem) -> AskedItem:
        """The document of a result, as it was sent."""
        return self.asked.documents[row.index]


@dataclass(frozen=True)
class Example:
    """A request for the documentation, and a shortened response."""

    request: Mapping[str, Any]
    response: Any


class Dialect(Protocol):
    """How one family of clients asks for a ranking and reads it.

    Attributes:
        name: name in settings, headers and metrics.
        title: what documentation calls it.
        paths: routes that it is known by, the most typical first.
        invalid_status: status of a value that cannot be used.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paths: ClassVar[tuple[str, ...]]
    invalid_status: ClassVar[int]

    def accepts(self, path: str, body: Mapping[str, Any]) -> bool:
        """Whether a request to ``path`` is in this dialect."""
        ...

    def parse(self, body: Mapping[str, Any], limits: Limits) -> tuple[Asked, ...]:
        """What the body asks for; several lists only for scores of pairs.

        Raises:
            ApiError: 400 for a value that cannot be used, 413 for a request over a limit.
        """
        ...

    def render(self, answers: Sequence[Answer]) -> Any:
        """The response as JSON values."""
        ...

    def error(self, error: ApiError, request_id: str) -> Any:
        """The error body as JSON values."""
        ...

    def example(self) -> Example:
        """An example for the documentation."""
        ...


class RerankDialect:
    """What dialects of the form query and documents share; subclasses say where they differ."""

    documents: ClassVar[tuple[str, ...]] = ("documents",)
    count: ClassVar[tuple[str, ...]] = ("top_n",)
    echo_field: ClassVar[str] = "return_documents"
    echo_default: ClassVar[Echo] = "none"
    truncation: ClassVar[tuple[str, ...]] = ()
    idle: ClassVar[frozenset[str]] = frozenset()
    invalid_status: ClassVar[int] = 400

    def parse(self, body: Mapping[str, Any], limits: Limits) -> tuple[Asked, ...]:
        fields = Fields(body)
        reader = ItemReader(limits.max_text_characters, _rank_fields(fields))
        options, unknown = read_options(fields, limits)
        query = read_item(fields, "query", reader)
        documents = read_items(fields, self.documents, reader, limits)
        top_n = fields.whole(*self.count, least=0, zero="all")
        echo = fields.flag(self.echo_field)
        asked = Asked(
            query,
            documents,
            top_n=min(top_n, len(documents)) if top_n else None,
            echo=self.echo_default if echo is None else "all" if echo else "none",
            truncate=not self.truncation or fields.flag(*self.truncation) is not False,
            model=fields.text("model"),
            options=options,
        )
        named = {"query": (query,), self.documents[0]: documents}
        asked = replace(asked, warnings=ignored_fields(fields, unknown, named, self.idle))
        check_totals([asked], limits)
        return (asked,)

    def error(self, error: ApiError, request_id: str) -> Any:
        return superset_body(error, request_id)

    def render(self, answers: Sequence[Answer]) -> Any:
        (answer,) = answers
        return self.head(answer) | {
            "results": [self.row(answer, row) for row in answer.results],
            **self.tail(answer),
        }

    def head(self, answer: Answer) -> dict[str, Any]:
        """Fields before the results."""
        return {
            "id": answer.request_id,
            "object": "rerank",
            "created": answer.created,
            "model": answer.results.model,
        }

    def row(self, answer: Answer, row: RankedItem) -> dict[str, Any]:
        """One result."""
        result: dict[str, Any] = {"index": row.index, "relevance_score": row.score}
        item = answer.document(row)
        if item.id is not None:
            result["id"] = item.id
        if row.truncated:
            result["truncated"] = True
        if (shown := self.echo(answer, item)) is not None:
            result["document"] = shown
        return result

    def echo(self, answer: Answer, item: AskedItem) -> Any:
        """The document of a result; None to leave it out."""
        if answer.asked.echo == "none":
            return None
        shown: dict[str, Any] = {"text": item.text or ""}
        if item.pictures and answer.asked.echo == "all":
            shown["multi_modal"] = [
                {"type": "image_url", "image_url": {"url": as_address(one)}}
                for one in item.pictures
            ]
        return shown

    def tail(self, answer: Answer) -> dict[str, Any]:
        """Fields after the results: what it cost, warnings, and our own."""
        return {
            "usage": usage_of(answer.results),
            "meta": meta_of(answer, "1"),
            **({"warnings": list(answer.asked.warnings)} if answer.asked.warnings else {}),
            "retrv": own_fields(answer),
        }


class BareDialect(RerankDialect):
    """A dialect whose response is the array of results, without fields around it."""

    def render(self, answers: Sequence[Answer]) -> Any:
        (answer,) = answers
        return [self.row(answer, row) for row in answer.results]


def all_warnings(answers: Sequence[Answer]) -> list[str]:
    """The warnings of all answers of a request, each once."""
    return list(dict.fromkeys(line for answer in answers for line in answer.asked.warnings))


def own_fields(answer: Answer) -> dict[str, Any]:
    """The object ``retrv`` of a response."""
    results = answer.results
    return {
        "mode": results.mode,
        "auto": results.auto,
        "cut": results.cut,
        "answer": results.answer,
        "none_of_these": results.none_of_these,
        "reasoning": results.reasoning,
        "inspected": list(results.inspected),
        "refused": results.refused,
        "well_formed": results.well_formed,
        "query_truncated": results.query_truncated,
        "timings": dict(results.timings),
        "tokens": asdict(tokens_of(results)),
        "bill": {
            **vars(results.bill),
            "seconds": dict(results.bill.seconds),
            "tokens": asdict(results.bill.tokens),
        },
        "device": results.device,
        "dtype": results.dtype,
    }


def tokens_of(results: RankedResults) -> TokenCounts:
    """Tokens of all windows and votes where they were billed, else those of the last window."""
    return results.bill.tokens if results.bill.prompts else results.tokens


def usage_of(results: RankedResults) -> dict[str, int]:
    """Rows that the language model read as prompt tokens, written tokens as completion tokens.

    Image tokens, those of pictures that were read in full, are among the prompt tokens.
    """
    tokens = tokens_of(results)
    read = tokens.prompt + tokens.inspected
    return {
        "prompt_tokens": read,
        "completion_tokens": tokens.generated,
        "total_tokens": read + tokens.generated,
        "image_tokens": tokens.pictures,
        "cached_tokens": tokens.cached,
    }


def meta_of(answer: Answer, version: str) -> dict[str, Any]:
    """Cohere's object ``meta``."""
    usage = usage_of(answer.results)
    units = math.ceil(len(answer.asked.documents) / DOCUMENTS_PER_UNIT)
    return {
        "api_version": {"version": version},
        "billed_units": {"search_units": units},
        "tokens": {
            "input_tokens": usage["prompt_tokens"],
            "output_tokens": usage["completion_tokens"],
        },
        **({"warnings": list(answer.asked.warnings)} if answer.asked.warnings else {}),
    }


def _rank_fields(fields: Fields) -> tuple[str, ...]:
    """Cohere's names of the fields of an object that make its text."""
    name, value = fields.any("rank_fields")
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise invalid(f"{name} must be a list of field names", name)
    return tuple(dict.fromkeys(value))
