"""Reads a body as one JSON object, strictly: what parsers disagree about is refused."""

from __future__ import annotations

import json
import math
from typing import Any

from retrv_r1.serve.errors import malformed, over_limit

MOST_DIGITS = 400
"""Digits of a number; no field takes more, and Python's own bound is an error of another kind."""


def read_json(body: bytes, most_values: int) -> dict[str, Any]:
    """The object that a body holds.

    Args:
        most_values: items of lists and fields of objects that it may have.
    Raises:
        ApiError: 400; not UTF-8, not JSON, not an object, a duplicate key, NaN or an infinite
            number, half a surrogate pair in a key, or nesting that is too deep. 413 for too many
            values.
    """
    _check_values(body, most_values)
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise malformed(f"the body is not UTF-8 (byte {error.start}); encode it as UTF-8") from None
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_int,
        )
    except json.JSONDecodeError as error:
        raise malformed(
            f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise malformed("the body is nested too deeply; send flat lists of items") from None
    if not isinstance(value, dict):
        raise malformed("the body must be a JSON object, with the fields query and documents")
    return value


def _check_values(body: bytes, most: int) -> None:
    """Counts values before they are parsed, because ``[],`` takes 20 times its bytes then."""
    if _marks(body) <= most:
        return
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # without the quotes inside texts
    texts = plain.count(b'"') // 2
    # Each value has at most two texts, with its key; so few pieces do not fill the memory.
    if texts > 2 * most or _marks(b"".join(plain.split(b'"')[::2])) > most:
        raise over_limit(
            "max_json_values",
            most,
            None,
            "values",
            "send fewer, or several requests",
            has="the body has more than ",
        )


def _marks(body: bytes) -> int:
    """Marks that a value follows in a list or an object; those in texts count as well."""
    return sum(body.count(mark) for mark in (b"[", b"{", b","))


def encodable(text: str) -> bool:
    """Whether a text can be written as UTF-8: it has no half of a surrogate pair."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        shown = twice[:40] if encodable(twice) else "one that is not valid Unicode"
        raise malformed(f"the body has a key twice in one object: {shown}; send it once")
    if not all(map(encodable, result)):
        raise malformed("the body has a key that is not valid Unicode (half a surrogate pair)")
    return result


def _constant(name: str) -> Any:
    raise malformed(f"the body has the number {name}, which JSON does not know; leave it out")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise malformed("the body has a number that is too large for a double; leave it out")
    return value


def _int(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise malformed(f"the body has a number of more than {MOST_DIGITS} digits; leave it out")
    return int(digits)
