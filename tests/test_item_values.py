"""What an item takes: pictures in every plain form, ids of any scalar kind, and what is refused."""

from __future__ import annotations

import base64
import io
import json
import pickle
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from retrv_r1.images import load_image
from retrv_r1.report import print_ranking, render_html, to_response
from retrv_r1.types import Item, ItemError, RankedItem, RankedResults, RankRequest


def encoded() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(buffer, "PNG")
    return buffer.getvalue()


def read_buffer() -> io.BytesIO:
    buffer = io.BytesIO(encoded())
    buffer.read()
    return buffer


RED = np.full((6, 8, 3), (255, 0, 0), np.uint8)
URI = "data:image/png;base64," + base64.b64encode(encoded()).decode()
PICTURES = {
    "open file, read to its end": read_buffer,
    "bytearray": lambda: bytearray(encoded()),
    "memoryview": lambda: memoryview(encoded()),
    "array": lambda: RED,
    "tensor": lambda: torch.from_numpy(RED),
    "bytes of a data set": lambda: {"bytes": encoded(), "path": None},
    "bytes and path": lambda: {"bytes": encoded(), "path": "gone.png"},
    "field": lambda: {"image": io.BytesIO(encoded())},
    "data: URI": lambda: {"image": URI},
}


@pytest.mark.parametrize("form", PICTURES)
def test_a_picture_may_come_in_any_plain_form(form):
    picture = load_image(Item.of(PICTURES[form]()).image)
    assert np.array_equal(np.asarray(picture), RED)


def test_a_path_of_a_data_set_and_a_mask_are_pictures(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded())
    item = Item.of({"bytes": None, "path": str(tmp_path / "a.png")})
    assert load_image(item.image).size == (8, 6)
    mask = load_image(Item(image=np.eye(6, dtype=bool)[:, :, None]).image)
    assert mask.getpixel((0, 0)) == (255,) * 3 and mask.getpixel((1, 0)) == (0,) * 3


WRONG: dict[str, Any] = {
    "float nan": {"text": float("nan")},
    "text must be a string, not int": {"text": 5},
    "not bytes": {"text": b"x"},
    "picture cannot be of type float": {"image": float("nan")},
    "an item of NoneType": None,
    "neither bytes nor a path": {"bytes": None, "path": None},
    "of float64 is no picture": np.zeros((8, 8, 3)),
    r"\[3, 8, 8\] of uint8 is no picture": np.zeros((3, 8, 8), np.uint8),
    "requires grad": torch.zeros(3, requires_grad=True),
    'mode "rb"': io.StringIO("x"),
    "the data: URI of 15 characters is damaged": {"image": "data:image/png;"},
    "id must be a string or a number, not bool": {"text": "x", "id": True},
    "id must be a string or a number, not tuple": {"text": "x", "id": (1, 2)},
    "id must be a string or a number, not float nan": {"text": "x", "id": float("nan")},
    "id must be a string or a number, not float inf": {"text": "x", "id": float("inf")},
}


@pytest.mark.parametrize("expected", WRONG)
def test_another_value_is_refused_with_the_candidates_number(expected):
    with pytest.raises(ItemError, match=f"^candidate 1: .*{expected}"):
        RankRequest("query", ["good", WRONG[expected]]).items()


@pytest.mark.parametrize(
    "single", [RED, read_buffer(), memoryview(b"x"), {"text": "x"}, Item("x")], ids=type
)
def test_a_single_item_is_no_list_of_candidates(single):
    with pytest.raises(ItemError, match="candidates must be a list"):
        RankRequest("query", single).items()


class Column(list):
    """A column of a table, as polars has them: it converts to an array, and has no ``ndim``."""

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        return np.array(list(self))


def test_arrays_of_texts_or_pictures_are_lists():
    assert len(RankRequest("query", Column(["a", "b"])).items()) == 3
    texts = RankRequest("query", np.array(["a", "b"])).items()
    assert [item.text for item in texts] == ["query", "a", "b"]
    assert len(RankRequest("query", np.stack([RED, RED])).items()) == 3


def test_a_data_uri_is_read_without_the_programs_url_opener(monkeypatch):
    monkeypatch.setattr(urllib.request, "_opener", None)
    monkeypatch.setenv("data_proxy", "http://127.0.0.1:9")
    assert Item(image=URI).image == encoded()


@pytest.mark.parametrize("name", ["seven", 7, 0, 1.5, np.int64(7)], ids=repr)
def test_ids_of_any_scalar_kind_are_kept_and_shown(name):
    item = Item("a text", id=name)
    results = RankedResults(Item("q"), 0, (RankedItem(0, 0.9, item),), mode="fast", model="m")
    out = io.StringIO()
    print_ranking(results, Console(file=out, width=80), candidates=1)
    assert f" {name}" in out.getvalue() and f'title="{name}"' in render_html(results)
    response = json.loads(json.dumps(to_response(results)))
    assert response["results"][0]["id"] == name == item.id
    assert pickle.loads(pickle.dumps(results)) == results


def test_a_url_is_refused_whole_and_a_long_one_short(tmp_path):
    for url in ("https://example.com/a.png", "s3://bucket/" + "a" * 5000):
        with pytest.raises(ItemError) as caught:
            load_image(url)
        assert url[:100] in str(caught.value) and len(str(caught.value)) < 300
        assert "download it" in str(caught.value)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_end_mark_is_read_and_one_without_pixels_is_not(progressive, picture):
    buffer = io.BytesIO()
    picture(3, 64, 48).save(buffer, "JPEG", quality=90, progressive=progressive)
    data = buffer.getvalue()
    whole = load_image(data)
    for lost in (1, 2):
        assert load_image(data[:-lost]).tobytes() == whole.tobytes()
    for lost in (4, 8, 64, len(data) // 2):
        with pytest.raises(ItemError, match="is damaged"):
            load_image(data[:-lost])


def test_a_path_is_kept():
    assert Item(image=Path("a.png")).image == Path("a.png")
