"""Every form in which rerank clients send an item is read, and any other is refused by place."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from serve_app import png

from retrv_r1.serve.errors import ApiError
from retrv_r1.serve.schema.items import AskedItem, ItemReader

READER = ItemReader(most_characters=100)
URL = "https://example.org/a.png"


@pytest.mark.parametrize(
    ("value", "text", "pictures"),
    [
        ("a pear", "a pear", ()),
        ({"text": "a pear"}, "a pear", ()),
        ({"text": "a pear", "image": URL}, "a pear", (URL,)),
        ({"image": "aGk="}, None, ("aGk=",)),
        ({"image": {"url": URL}}, None, (URL,)),
        ({"image_url": URL}, None, (URL,)),
        ({"content": "a pear"}, "a pear", ()),
        ({"content": [{"type": "text", "text": "a pear"}]}, "a pear", ()),
        (
            {"content": [{"type": "image_url", "image_url": {"url": URL}}, {"text": "a pear"}]},
            "a pear",
            (URL,),
        ),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "pear"}], "a\npear", ()),
        (["a", "pear"], "a\npear", ()),
        ([{"type": "image_base64", "image_base64": "aGk="}], None, ("aGk=",)),
        ({"type": "image", "format": "base64", "value": "aGk="}, None, ("aGk=",)),
        ({"type": "text", "value": "a pear"}, "a pear", ()),
        ({"role": "user", "content": "a pear"}, "a pear", ()),
    ],
)
def test_an_item_is_read_in_any_form(value, text, pictures):
    found = READER.read(value, "query")
    assert (found.text, found.pictures) == (text, pictures)


def test_an_id_is_kept_and_other_fields_are_named():
    found = READER.read({"text": "a", "id": 7, "title": "t", "none": None}, "documents[0]")
    assert found == AskedItem("a", (), 7, ("title",))


def test_rank_fields_make_the_text_of_an_object():
    document = {"title": "Pears", "text": "are green", "year": "2024"}
    read = {
        fields: ItemReader(100, fields).read(document, "d")
        for fields in ((), ("title", "text"), ("year",), ("absent",))
    }
    assert read[()].text == "are green" and read[()].ignored == ("title", "year")
    assert read["title", "text"].text == "title: Pears\ntext: are green"
    assert read["title", "text"].ignored == ("year",)
    assert read["year",].text == "2024"
    assert read["absent",].text == "are green"


@pytest.mark.parametrize(
    ("value", "param", "code"),
    [
        (None, "d", "invalid_value"),
        (7, "d", "invalid_value"),
        (True, "d", "invalid_value"),
        ("", "d", "invalid_value"),
        (" \n", "d", "invalid_value"),
        ({}, "d", "invalid_value"),
        ([], "d", "invalid_value"),
        ([[]], "d[0]", "invalid_value"),
        ([{}], "d[0]", "invalid_value"),
        ({"title": "only"}, "d", "invalid_value"),
        ({"text": 1}, "d.text", "invalid_value"),
        ({"text": ["a"]}, "d.text", "invalid_value"),
        ({"text": "\ud800"}, "d.text", "invalid_value"),
        ({"image": 1}, "d.image", "invalid_value"),
        ({"image": ""}, "d.image", "invalid_value"),
        ({"image": {"path": "x"}}, "d.image", "invalid_value"),
        ({"image": "data:é"}, "d.image", "invalid_value"),
        ({"content": 5}, "d.content", "invalid_value"),
        ({"content": [{"type": "video_url", "video_url": "x"}]}, "d.content[0]", "invalid_value"),
        ({"type": "image", "format": "hex", "value": "00"}, "d.format", "invalid_value"),
        ({"text": "a", "id": [1]}, "d.id", "invalid_value"),
        ({"text": "a", "id": True}, "d.id", "invalid_value"),
        ({"doc_id": "x"}, "d.doc_id", "no_index"),
        ({"image": ["aGk=", "aGk="]}, "d", "too_many_pictures_per_document"),
        ({"text": "x" * 101}, "d.text", "max_text_characters"),
        (["x" * 60, "y" * 60], "d", "max_text_characters"),
    ],
)
def test_what_is_no_item_is_refused_by_its_place(value, param, code):
    with pytest.raises(ApiError) as caught:
        READER.read(value, "d")
    error = SimpleNamespace(**vars(caught.value))
    assert (error.param, error.code) == (param, code)
    assert error.status == (413 if code.startswith("max_") else 400)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (png("red"), True),
        (png("red", 64).partition(",")[2], True),
        ({"text": png("red")}, True),
        ({"image": png("red")}, False),
        ("data:image is a kind of address", False),
        ("iVBORw0KGgo " * 40, False),
        ("a" * 1000, False),
    ],
)
def test_a_picture_in_the_place_of_a_text_is_noticed(value, encoded):
    found = ItemReader(most_characters=10_000).read(value, "query")
    assert found.encoded is encoded


@pytest.mark.parametrize(
    ("value", "place", "words"),
    [
        ("", "query", "query is empty; send a text or a picture"),
        (" ", "documents[1]", "documents[1] is empty or blank"),
        ({"title": "x"}, "documents[0]", "rank_fields"),
        ("x" * 101, "query", "--limit max_text_characters=N"),
    ],
)
def test_messages_name_the_remedy(value, place, words):
    with pytest.raises(ApiError) as caught:
        READER.read(value, place)
    assert words in caught.value.message
