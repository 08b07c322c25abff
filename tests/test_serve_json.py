"""Bodies are read strictly: what two parsers may read differently is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrv_r1.serve.errors import ApiError
from retrv_r1.serve.limits import Limits
from retrv_r1.serve.schema.json_body import read_json

MOST = Limits().max_json_values


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe{}", "not UTF-8 (byte 0)"),
        ('{"query": "é"}'.encode("latin-1"), "not UTF-8 (byte 11)"),
        ('{"query": "a"}'.encode("utf-16"), "not UTF-8"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": [-Infinity]}', "Infinity"),
        (b'{"a": 1e999}', "too large for a double"),
        (b'{"a": -1e999}', "too large for a double"),
        (b'{"a": ' + b"9" * 5000 + b"}", "more than 400 digits"),
        (b'{"a": 1, "b": 2, "a": 1}', "a key twice in one object: a"),
        (b'{"x": [{"secret": 1, "secret": 2}]}', "a key twice"),
        (b'{"\\ud800": 1}', "not valid Unicode"),
        (b'{"\\ud800": 1, "\\ud800": 1}', "not valid Unicode"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "nested too deeply"),
        (b'{"a": 1} {"b": 2}', "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": "\x01"}', "not JSON"),
    ],
)
def test_a_body_that_is_no_json_object_is_malformed(body, part):
    with pytest.raises(ApiError) as caught:
        read_json(body, MOST)
    assert (caught.value.status, caught.value.code) == (400, "malformed_body")
    assert part in caught.value.message and "\n" not in caught.value.message


def test_a_body_of_text_and_numbers_is_read():
    body = '\ufeff{"é": "\\ud83c\\udf4e", "n": 12345678901234567890, "f": 1.5, "x": null}'
    found = read_json(body.encode(), MOST)
    assert found == {"é": "🍎", "n": 12345678901234567890, "f": 1.5, "x": None}


TEXTS = st.text(st.sampled_from('a",[]{}\\é😀\n'), max_size=8)
VALUES = st.recursive(
    TEXTS | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


def count(value: Any) -> int:
    """Values in a value; an empty list or object counts as well."""
    if not isinstance(value, list | dict):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return max(1, len(value)) + sum(map(count, inner))


@given(st.dictionaries(TEXTS, VALUES, max_size=4), st.booleans())
def test_values_are_counted_whatever_is_in_texts(body, plain):
    sent, found = json.dumps(body, ensure_ascii=plain).encode(), count(body)
    assert read_json(sent, found) == body
    with pytest.raises(ApiError) as caught:
        read_json(sent, found - 1)
    assert (caught.value.status, caught.value.code) == (413, "max_json_values")


@pytest.mark.parametrize("piece", [b"[", b"[],", b"{},", b'{"":0},', b'"",', b"0,"])
def test_values_that_would_fill_the_memory_are_refused_before_they_are_parsed(monkeypatch, piece):
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("it is parsed"))
    with pytest.raises(ApiError) as caught:
        read_json(b'{"documents": [' + piece * 300_000, MOST)
    assert caught.value.code == "max_json_values"
