"""vLLM's scores of pairs: pairs of one query are ranked as one list."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from retrv_r1.serve.dialects.base import Answer, Example, all_warnings, usage_of
from retrv_r1.serve.errors import ApiError, invalid, over_limit, superset_body
from retrv_r1.serve.limits import Limits
from retrv_r1.serve.schema.asked import Asked, check_totals, ignored_fields, read_options
from retrv_r1.serve.schema.fields import Fields
from retrv_r1.serve.schema.items import AskedItem, ItemReader

FIRST = ("text_1", "queries", "data_1", "query")
SECOND = ("text_2", "documents", "data_2", "items")


class Score:
    """``POST /score``: one or many first texts with one or many second ones.

    The model compares the documents of a query, so pairs with the same query are ranked together.
    """

    name: ClassVar[str] = "score"
    title: ClassVar[str] = "vLLM's scores of pairs"
    paths: ClassVar[tuple[str, ...]] = ("/v1/score", "/score")
    invalid_status: ClassVar[int] = 400

    def accepts(self, path: str, body: Mapping[str, Any]) -> bool:
        return path in self.paths

    def parse(self, body: Mapping[str, Any], limits: Limits) -> tuple[Asked, ...]:
        fields = Fields(body)
        if body.get("label_token_ids") is not None:
            raise invalid(
                "label_token_ids asks for probabilities of tokens, which this model does not give; "
                "send text_1 and text_2",
                "label_token_ids",
            )
        options, unknown = read_options(fields, limits)
        if options.stream:
            raise invalid("scores of pairs cannot be streamed; leave stream out", "stream")
        options = replace(options, mode=options.mode or "fast")
        reader = ItemReader(limits.max_text_characters)
        first, second = _pairs(fields, limits)
        items = {"text_1": _read(first, reader), "text_2": _read(second, reader)}
        model = fields.text("model")
        idle = frozenset({"truncate_prompt_tokens", "encoding_format", "user", "priority"})
        warnings = ignored_fields(fields, unknown, items, idle)
        groups: dict[str, list[int]] = {}
        distinct = {id(value): value for _, value in first}
        keys = {key: json.dumps(value, sort_keys=True) for key, value in distinct.items()}
        for place, (_, value) in enumerate(first):
            groups.setdefault(keys[id(value)], []).append(place)
        asked = [
            Asked(
                items["text_1"][places[0]],
                tuple(items["text_2"][place] for place in places),
                model=model,
                options=options,
                warnings=warnings,
                places=tuple(places),
            )
            for places in groups.values()
        ]
        check_totals(asked, limits)
        return tuple(asked)

    def render(self, answers: Sequence[Answer]) -> Any:
        scores = {
            answer.asked.places[row.index]: row.score
            for answer in answers
            for row in answer.results
        }
        usages = [usage_of(answer.results) for answer in answers]
        one = answers[0]
        warnings = list(all_warnings(answers))
        return {
            "id": one.request_id,
            "object": "list",
            "created": one.created,
            "model": one.results.model,
            "data": [
                {"index": place, "object": "score", "score": scores[place]}
                for place in range(len(scores))
            ],
            "usage": {name: sum(usage[name] for usage in usages) for name in usages[0]},
            **({"warnings": warnings} if warnings else {}),
        }

    def error(self, error: ApiError, request_id: str) -> Any:
        return superset_body(error, request_id)

    def example(self) -> Example:
        return Example(
            {
                "model": "tiny",
                "text_1": "a red apple",
                "text_2": ["a green pear", "an apple that is red"],
            },
            {
                "object": "list",
                "model": "tiny",
                "data": [
                    {"index": 0, "object": "score", "score": 0.04},
                    {"index": 1, "object": "score", "score": 0.93},
                ],
            },
        )


Placed = list[tuple[str, Any]]
"""Values with their places in the body."""


def _pairs(fields: Fields, limits: Limits) -> tuple[Placed, Placed]:
    """Both sides, of the same length."""
    first, second = _side(fields, FIRST), _side(fields, SECOND)
    count = max(len(first), len(second))
    if count > limits.max_documents:
        raise over_limit(
            "max_documents", limits.max_documents, count, "pairs", "send several requests", "text_2"
        )
    for side in (first, second):
        if len(side) == 1:
            side *= count
    if len(first) != len(second):
        raise invalid(
            f"text_1 has {len(first)} items and text_2 {len(second)}; send as many, or one",
            "text_1",
        )
    return first, second


def _read(values: Placed, reader: ItemReader) -> tuple[AskedItem, ...]:
    """The items of a side; a value that is there many times, as a lone query is, is read once."""
    read: dict[int, AskedItem] = {}
    for place, value in values:
        if id(value) not in read:
            read[id(value)] = reader.read(value, place)
    return tuple(read[id(value)] for _, value in values)


def _side(fields: Fields, names: tuple[str, ...]) -> Placed:
    name, value = fields.any(*names)
    if value is None:
        raise invalid(f"{name} is missing; send a text or a list", name, "missing_field")
    if isinstance(value, dict) and isinstance(value.get("content"), list):
        value = [part if isinstance(part, str) else [part] for part in value["content"]]
    if not isinstance(value, list):
        return [(name, value)]
    if not value:
        raise invalid(f"{name} is empty; send at least one item", name)
    return [(f"{name}[{place}]", one) for place, one in enumerate(value)]
