"""Reads an item in any of the forms that rerank clients send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from retrv_r1.serve.errors import ApiError, invalid, over_limit
from retrv_r1.serve.picture_strings import looks_like_picture
from retrv_r1.serve.schema.fields import kind_of, text_of

KNOWN = frozenset({"text", "image", "image_url", "content", "type", "format", "value", "id"})
"""Fields of an item object that are read; others are ignored."""

FORMS = 'send a string, {"text", "image"}, {"content": [parts]} or [parts]'


@dataclass(frozen=True)
class AskedItem:
    """A query or a document as it was sent; its pictures are not decoded.

    Args:
        text: the text; several parts are joined by line ends.
        pictures: data URIs, base64 or addresses.
        id: the caller's name for it.
        ignored: fields that were not read.
        place: where it is in the body, such as ``documents[3]``.
        sent: the object, where it was one.
        encoded: whether its text is an encoded picture.
    """

    text: str | None
    pictures: tuple[str, ...] = ()
    id: str | int | float | None = None
    ignored: tuple[str, ...] = ()
    place: str = field(default="", compare=False)
    sent: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)
    encoded: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class ItemReader:
    """Reads items.

    Args:
        most_characters: limit of an item's text.
        rank_fields: fields of an object that make its text (Cohere); empty for ``text`` alone.
    """

    most_characters: int
    rank_fields: tuple[str, ...] = ()

    def read(self, value: Any, place: str) -> AskedItem:
        """The item of a JSON value; ``place`` names it in messages.

        Raises:
            ApiError: 400; no form of an item, an empty one, one of an index, a wrong type, or more
                than one picture. 413 for a text over the limit.
        """
        parts = _Parts(place)
        identity: str | int | float | None = None
        ignored: list[str] = []
        if isinstance(value, str):
            parts.texts.append(self._text(value, place))
        elif isinstance(value, list):
            self._list(value, place, parts)
        elif isinstance(value, dict):
            identity, ignored = self._object(value, place, parts)
        else:
            raise invalid(f"{place} is {kind_of(value)}, not an item; {FORMS}", place)
        text = "\n".join(parts.texts) if parts.texts else None
        if text is not None and len(text) > self.most_characters:
            raise _too_long(place, self.most_characters)
        if not parts.pictures and not (text and text.strip()):
            raise _empty(place)
        if len(parts.pictures) > 1:
            raise invalid(
                f"{place} has {len(parts.pictures)} pictures; a document is one candidate with one "
                "score, and the model reads one picture of it: send one, or one document a picture",
                place,
                "too_many_pictures_per_document",
            )
        return AskedItem(
            text,
            tuple(parts.pictures),
            identity,
            tuple(ignored),
            place,
            value if isinstance(value, dict) else None,
            any(map(looks_like_picture, parts.texts)),
        )

    def _object(
        self, value: Mapping[str, Any], place: str, parts: _Parts
    ) -> tuple[str | int | float | None, list[str]]:
        if value.get("doc_id") is not None:
            raise ApiError(
                400,
                "no_index",
                f"{place}.doc_id names a document of an index, but no index is loaded; send the "
                "document itself",
                f"{place}.doc_id",
            )
        named = [name for name in self.rank_fields if value.get(name) is not None]
        self._part(value, place, parts, text=not named)
        for name in named:
            shown = self._text(value[name], f"{place}.{name}")
            parts.texts.append(f"{name}: {shown}" if len(self.rank_fields) > 1 else shown)
        known = KNOWN.union(self.rank_fields, {"doc_id"})
        ignored = [name for name, v in value.items() if name not in known and v is not None]
        if not parts.found and not named:
            lacks = ", and without the fields that rank_fields names" if self.rank_fields else ""
            raise invalid(
                f"{place} is an object without text and image{lacks}; send one of them, or name "
                "the fields that make its text in rank_fields",
                place,
            )
        return _id(value.get("id"), f"{place}.id"), ignored

    def _list(self, value: Sequence[Any], place: str, parts: _Parts) -> None:
        for number, part in enumerate(value):
            where = f"{place}[{number}]"
            if isinstance(part, str):
                parts.add_text(self._text(part, where))
            elif isinstance(part, dict):
                before = len(parts.texts) + len(parts.pictures)
                self._part(part, where, parts)
                if len(parts.texts) + len(parts.pictures) == before:
                    raise invalid(f"{where} is no text and no picture; {FORMS}", where)
            else:
                raise invalid(f"{where} is {kind_of(part)}, not a part; {FORMS}", where)

    def _part(
        self, value: Mapping[str, Any], place: str, parts: _Parts, *, text: bool = True
    ) -> None:
        """An object that is an item or a part of one: what it says of text and picture."""
        kind = value.get("type")
        if isinstance(kind, str) and any(word in kind for word in ("video", "audio", "file")):
            raise invalid(
                f"{place} is of type {kind[:40]!r}; only texts and pictures are read", place
            )
        if (content := value.get("content")) is not None:
            parts.found = True
            if isinstance(content, list):
                self._list(content, f"{place}.content", parts)
            else:
                parts.add_text(self._text(content, f"{place}.content"))
        if text and value.get("text") is not None:
            parts.add_text(self._text(value["text"], f"{place}.text"))
        for name in ("image", "image_url", "image_base64"):
            if value.get(name) is not None:
                parts.add_pictures(value[name], f"{place}.{name}")
        if value.get("value") is not None and kind in ("image", "text"):
            if kind == "text":
                parts.add_text(self._text(value["value"], f"{place}.value"))
            elif value.get("format", "base64") != "base64":
                raise invalid(f"{place}.format must be base64", f"{place}.format")
            else:
                parts.add_pictures(value["value"], f"{place}.value")

    def _text(self, value: Any, place: str) -> str:
        if isinstance(value, str) and len(value) > self.most_characters:
            raise _too_long(place, self.most_characters)
        return text_of(value, place, self.most_characters)


class _Parts:
    """Texts and pictures of an item, in order."""

    def __init__(self, place: str) -> None:
        self.place, self.found = place, False
        self.texts: list[str] = []
        self.pictures: list[str] = []

    def add_text(self, text: str) -> None:
        self.found = True
        self.texts.append(text)

    def add_pictures(self, value: Any, place: str) -> None:
        """A picture, or a list of pictures; each an address or ``{"url": address}``."""
        self.found = True
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict):
                one = one.get("url")
            if one == "":
                raise invalid(f"{place} is empty; send a data URI, or leave it out", place)
            if not isinstance(one, str):
                raise invalid(
                    f"{place} must be a data URI, base64 or an address, not {kind_of(one)}", place
                )
            if not one.isascii():
                raise invalid(f"{place} has characters that no data URI and no address has", place)
            self.pictures.append(one)


def _id(value: Any, place: str) -> str | int | float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise invalid(f"{place} must be a string or a number, not {kind_of(value)}", place)
    return text_of(value, place, 1000) if isinstance(value, str) else value


def _empty(place: str) -> ApiError:
    if place == "query":
        return invalid("query is empty; send a text or a picture", place)
    return invalid(
        f"{place} is empty or blank; send a text or a picture, or leave the item out", place
    )


def _too_long(place: str, most: int) -> ApiError:
    return over_limit(
        "max_text_characters",
        most,
        None,
        "characters",
        "shorten it",
        place,
        has=f"{place} is over ",
    )
