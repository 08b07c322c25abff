"""What a rerank request asks for, whatever its dialect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from retrv_r1.serve.errors import invalid, over_limit
from retrv_r1.serve.limits import Limits
from retrv_r1.serve.schema.fields import Fields, kind_of
from retrv_r1.serve.schema.items import AskedItem, ItemReader
from retrv_r1.types import ModeChoice

Echo: TypeAlias = Literal["none", "texts", "all"]
"""What a response repeats of the documents: nothing, their texts, or their pictures too."""

MOST_WARNINGS = 20
INSTRUCTIONS = ("instruction", "instruct")


@dataclass(frozen=True)
class AskedOptions:
    """The object ``retrv`` of a request.

    Args:
        mode: mode; the server's default when None.
        max_inspections, max_reasoning_tokens: limits of the reasoning; the checkpoint's when None.
        votes: chains of thought.
        budget_ms: milliseconds after which reasoning is cut.
        stream: whether events are wanted.
        reading: how candidates are read.
        instruction: wording of the task.
    """

    mode: ModeChoice | None = None
    max_inspections: int | None = None
    max_reasoning_tokens: int | None = None
    votes: int = 1
    budget_ms: int | None = None
    stream: bool = False
    reading: Literal["compressed", "full"] = "compressed"
    instruction: str | None = None


@dataclass(frozen=True)
class Asked:
    """A request to rank documents for a query; its pictures are not decoded.

    Args:
        query, documents: the items.
        top_n: number of results; all when None.
        echo: what to repeat of the documents.
        truncate: whether a text that is too long may be cut; else the request fails.
        model: name of the model that was asked for.
        warnings: what was not done as asked.
        places: number of each document in the response, where a request has several lists.
    """

    query: AskedItem
    documents: tuple[AskedItem, ...]
    top_n: int | None = None
    echo: Echo = "none"
    truncate: bool = True
    model: str | None = None
    options: AskedOptions = field(default_factory=AskedOptions)
    warnings: tuple[str, ...] = ()
    places: tuple[int, ...] = ()


def read_options(body: Fields, limits: Limits) -> tuple[AskedOptions, list[str]]:
    """The object ``retrv`` and the field ``stream``, and which fields of it are unknown."""
    name, value = body.any("retrv")
    if value is not None and not isinstance(value, dict):
        raise invalid(f"{name} must be an object, not {kind_of(value)}", name)
    own = Fields(value or {}, "retrv")
    streams = own.flag("stream"), body.flag("stream")
    options = AskedOptions(
        mode=own.choice("mode", ("reason", "fast", "auto")),
        max_inspections=own.whole("max_inspections", least=0, most=128),
        max_reasoning_tokens=own.whole(
            "max_reasoning_tokens",
            least=1,
            most=limits.max_reasoning_tokens,
            limit="max_reasoning_tokens",
        ),
        votes=own.whole("votes", least=1, most=limits.max_votes, limit="max_votes") or 1,
        budget_ms=own.whole("budget_ms", least=1, most=24 * 3600 * 1000),
        stream=bool(streams[0] if streams[0] is not None else streams[1]),
        reading=own.choice("reading", ("compressed", "full")) or "compressed",
        instruction=own.text("instruction"),
    )
    body.read.update(INSTRUCTIONS)
    if options.instruction is None:
        options = replace(options, instruction=body.text(*INSTRUCTIONS))
    return options, own.rest()


def read_items(
    body: Fields, names: tuple[str, ...], reader: ItemReader, limits: Limits
) -> tuple[AskedItem, ...]:
    """The items of a list; ``names`` are the fields that it may be in."""
    name, value = body.any(*names)
    if value is None:
        raise invalid(f"{name} is missing; send a list of items", name, "missing_field")
    if isinstance(value, dict) and isinstance(value.get("content"), list):
        value = [part if isinstance(part, str) else [part] for part in value["content"]]  # vLLM
    if not isinstance(value, list):
        raise invalid(f"{name} must be a list of items, not {kind_of(value)}", name)
    if not value:
        raise invalid(f"{name} is empty; send at least one item", name)
    if len(value) > limits.max_documents:
        raise over_limit(
            "max_documents",
            limits.max_documents,
            len(value),
            "documents",
            "send several requests",
            name,
        )
    return tuple(reader.read(one, f"{name}[{i}]") for i, one in enumerate(value))


def read_item(body: Fields, name: str, reader: ItemReader) -> AskedItem:
    """The item of a field."""
    name, value = body.any(name)
    if value is None:
        raise invalid(f"{name} is missing; send a text or an item", name, "missing_field")
    return reader.read(value, name)


def ignored_fields(
    body: Fields, own: list[str], items: Mapping[str, tuple[AskedItem, ...]], idle: frozenset[str]
) -> tuple[str, ...]:
    """Warnings for fields that had no effect.

    Args:
        own: unknown fields of ``retrv``.
        items: items by the name of their field.
        idle: fields of the dialect that mean nothing here.
    """
    lines = [*_overruled(body), *_encoded(items)]
    lines += [f"{name} has no effect here" for name in body.rest() if name in idle]
    unknown = [name for name in body.rest() if name not in idle] + own
    for name, group in items.items():
        found = {field for one in group for field in one.ignored}
        unknown += [f"{name}[].{field}" for field in sorted(found)]
    lines += [f"unknown field ignored: {name[:100]}" for name in unknown]
    if len(lines) > MOST_WARNINGS:
        lines[MOST_WARNINGS - 1 :] = [f"{len(lines) - MOST_WARNINGS + 1} more fields are ignored"]
    return tuple(lines)


def _overruled(body: Fields) -> list[str]:
    """Warnings for wordings of the task beside another one."""
    own = body.values.get("retrv")
    given = ["retrv.instruction"] if isinstance(own, dict) and own.get("instruction") else []
    given += [name for name in INSTRUCTIONS if body.values.get(name) is not None]
    return [f"{name} has no effect beside {given[0]}" for name in given[1:]]


def _encoded(items: Mapping[str, tuple[AskedItem, ...]]) -> list[str]:
    """Warnings for texts that were probably meant as pictures."""
    lines = []
    for group in items.values():
        found = {one.place: None for one in group if one.encoded}
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            lines.append(
                f"{next(iter(found))}{more}: an encoded picture in the place of a text was ranked "
                'as text; send {"image": …} to rank the picture'
            )
    return lines


def check_totals(groups: list[Asked], limits: Limits) -> None:
    """Refuses a request whose texts or pictures together are more than the server takes."""
    items = [item for asked in groups for item in (asked.query, *asked.documents)]
    param = groups[0].documents[0].place.partition("[")[0]
    pictures = sum(len(item.pictures) for item in items)
    if pictures > limits.max_pictures:
        raise over_limit(
            "max_pictures",
            limits.max_pictures,
            pictures,
            "pictures",
            "send several requests",
            param,
        )
    characters = sum(len(item.text or "") for item in items)
    if characters > limits.max_total_characters:
        raise over_limit(
            "max_total_characters",
            limits.max_total_characters,
            characters,
            "characters",
            "shorten the texts, or send several requests",
            param,
        )
