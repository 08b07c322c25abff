"""Reads fields of a body by their types; remembers which were read, to list the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from retrv_r1.serve.errors import invalid, raised
from retrv_r1.serve.schema.json_body import encodable


class Fields:
    """The fields of an object.

    A missing field and ``null`` are the same. All readers raise a 400 that names the field.

    Args:
        values: the object.
        place: name of the object in messages; empty for the body itself.
    """

    def __init__(self, values: Mapping[str, Any], place: str = "") -> None:
        self.values, self.place = values, place
        self.read: set[str] = set()

    def name(self, field: str) -> str:
        """Full name of a field, such as ``retrv.mode``."""
        return f"{self.place}.{field}" if self.place else field

    def any(self, *fields: str) -> tuple[str, Any]:
        """Name and value of the first field that is there and not null; else the first and None."""
        self.read.update(fields)
        for field in fields:
            if self.values.get(field) is not None:
                return self.name(field), self.values[field]
        return self.name(fields[0]), None

    def text(self, *fields: str, most: int = 100_000) -> str | None:
        """A text of at most ``most`` characters."""
        name, value = self.any(*fields)
        return None if value is None else text_of(value, name, most)

    def whole(
        self,
        *fields: str,
        least: int,
        most: int | None = None,
        zero: str = "",
        limit: str = "",
    ) -> int | None:
        """A whole number of a range; 2.0 is one, as in JSON.

        Args:
            zero: what 0 means, for the message.
            limit: name of the server's limit that ``most`` is.
        """
        name, value = self.any(*fields)
        if value is None:
            return None
        if isinstance(value, float):
            if not value.is_integer():
                raise invalid(f"{name} must be a whole number, without a fraction", name)
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise invalid(f"{name} must be a whole number, not {kind_of(value)}", name)
        if value < least or (most is not None and value > most):
            bounds = f"at least {least}" if most is None else f"between {least} and {most}"
            if zero:
                bounds = f"0 ({zero}) or more"
            remedy = f"; for more, {raised(limit)}" if limit and value > least else ""
            raise invalid(f"{name} must be {bounds}{remedy}", name)
        return value

    def flag(self, *fields: str) -> bool | None:
        """True or false."""
        name, value = self.any(*fields)
        if value is not None and not isinstance(value, bool):
            raise invalid(f"{name} must be true or false, not {kind_of(value)}", name)
        return value

    def choice(self, field: str, allowed: Iterable[str]) -> Any:
        """One of a few words."""
        name, value = self.any(field)
        allowed = tuple(allowed)
        if value is not None and value not in allowed:
            raise invalid(f"{name} must be one of {', '.join(allowed)}", name)
        return value

    def rest(self, known: Iterable[str] = ()) -> list[str]:
        """Full names of the fields that nobody has read and that are not null, in order."""
        seen = {*self.read, *known}
        return [self.name(f) for f, v in self.values.items() if f not in seen and v is not None]


def text_of(value: Any, name: str, most: int) -> str:
    """A text; ``name`` is its place in the body."""
    if not isinstance(value, str):
        raise invalid(f"{name} must be a string, not {kind_of(value)}", name)
    if len(value) > most:
        raise invalid(f"{name} has more than {most} characters; shorten it", name)
    if not encodable(value):
        raise invalid(f"{name} is not valid Unicode: it has half a surrogate pair", name)
    return value


def kind_of(value: Any) -> Literal["null", "boolean", "number", "string", "list", "object"]:
    """JSON's name for the type of a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "list" if isinstance(value, list) else "object"
