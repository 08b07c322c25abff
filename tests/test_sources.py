"""What a command-line argument turns into, and what it is refused with."""

from __future__ import annotations

import base64
import io
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from retrv_r1.command.sources import read_candidates
from retrv_r1.types import ItemError


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.JPG", "deep/c.webp", "deep/er/d.gif", ".hidden.png", ".git/e.png"):
        path = Path("pictures", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path)
    Path("pictures/notes.md").write_text("not a picture")
    return tmp_path


def read(*arguments: str, stdin: bytes | None = None):
    return list(read_candidates(arguments, None if stdin is None else io.BytesIO(stdin)))


def test_a_picture_keeps_its_path_as_id(folder):
    (item,) = read("pictures/b.png")
    assert item.id == "pictures/b.png" and item.image == Path("pictures/b.png")
    assert item.text is None


def test_a_folder_is_walked_in_sorted_order_without_hidden_files(folder):
    ids = [item.id for item in read("pictures")]
    assert ids == [
        "pictures/a.JPG",
        "pictures/b.png",
        "pictures/deep/c.webp",
        "pictures/deep/er/d.gif",
    ]


def test_arguments_keep_their_order_and_are_read_lazily(folder):
    items = read_candidates(["pictures/b.png", "nowhere.png"])
    assert next(items).id == "pictures/b.png"
    with pytest.raises(ItemError, match=r"nowhere\.png"):
        next(items)


def test_text_file(folder):
    Path("t.txt").write_bytes("\ufeffa cat\r\n\n  \n{not json}\n  näive dog \n".encode())
    items = read("t.txt")
    assert [(i.id, i.text) for i in items] == [
        ("t.txt:1", "a cat"),
        ("t.txt:4", "{not json}"),
        ("t.txt:5", "näive dog"),
    ]


def test_jsonl(folder):
    lines = [
        {"id": "x", "text": "a cat"},
        {"id": 7, "image": "b.png", "text": None},
        "plain",
        {"image": str(Path("pictures/a.JPG").resolve())},
    ]
    path = Path("pictures/items.jsonl")
    path.write_text("\n\n".join(json.dumps(line) for line in lines))
    items = read("pictures/items.jsonl")
    assert [i.id for i in items] == ["x", 7, f"{path}:5", f"{path}:7"]
    assert items[1].image == Path("pictures/b.png") and items[2].text == "plain"
    assert items[3].image == Path("pictures/a.JPG").resolve()


def test_stdin_takes_text_and_objects(folder):
    stdin = b'a cat\n\n{"image": "pictures/b.png"}\n"quoted"\n'
    items = read("-", "pictures/b.png", stdin=stdin)
    assert [i.id for i in items] == ["stdin:1", "stdin:3", "stdin:4", "pictures/b.png"]
    assert items[1].image == Path("pictures/b.png") and items[2].text == '"quoted"'


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"text": "a"', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", r"is \[1\]; write a string or"),
        ("null", "is null"),
        ('{"txt": "a"}', r"unknown fields \['txt'\]; use id, text, image"),
        ('{"text": 3}', "must be strings"),
        ('{"image": ["a"]}', "must be strings"),
        ('{"id": [1], "text": "a"}', "id must be"),
        ('{"id": true, "text": "a"}', "id must be"),
        ('{"id": "x"}', "non-empty text, a picture, or both"),
        ('{"text": " "}', "non-empty text"),
        ('""', "non-empty text"),
        ('{"text": "\\ud83d"}', "surrogate"),
        ('{"image": "gone.png"}', r"no such picture file: pictures/gone\.png; .*relative"),
    ],
)
def test_malformed_lines_name_file_and_line(folder, line, expected):
    Path("pictures/bad.jsonl").write_text('"fine"\n' + line + "\n")
    with pytest.raises(ItemError, match=r"^pictures/bad\.jsonl:2.*" + expected):
        read("pictures/bad.jsonl")


def test_other_encodings_are_refused_with_the_line(folder):
    Path("latin.txt").write_bytes(b"cat\nna\xefve\n")
    with pytest.raises(ItemError, match=r"latin\.txt:2 is not UTF-8"):
        read("latin.txt")


def test_empty_sources_are_errors(folder):
    Path("empty").mkdir()
    Path("blank.txt").write_text("\n \n")
    Path("blank.jsonl").write_text("")
    with pytest.raises(ItemError, match="empty holds no pictures"):
        read("empty")
    for name in ("blank.txt", "blank.jsonl"):
        with pytest.raises(ItemError, match=f"{name} holds no candidates"):
            read(name)
    with pytest.raises(ItemError, match="stdin holds no candidates"):
        read("-", stdin=b"\n")


@pytest.mark.parametrize("argument", ["nope", "a red car", "", "x" * 5000])
def test_texts_given_as_arguments_say_how_to_pass_texts(folder, argument):
    with pytest.raises(ItemError, match=r"no such file: .* use - or a \.txt file"):
        read(argument)


def test_other_files_and_second_stdin_are_refused(folder):
    with pytest.raises(ItemError, match=r"cannot tell what pictures/notes\.md holds"):
        read("pictures/notes.md")
    with pytest.raises(ItemError, match="once"):
        read("-", "-", stdin=b"a\n")
    with pytest.raises(ItemError, match="no standard input"):
        read("-")


def test_a_loop_of_links_ends(folder):
    os.symlink(folder / "pictures", folder / "pictures" / "loop")
    assert len(read("pictures")) == 4


def test_names_that_are_not_utf8_stay_printable(folder):
    raw = os.fsencode(folder) + b"/caf\xe9.png"
    try:
        Image.new("RGB", (2, 2)).save(os.fsdecode(raw), "PNG")
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    (item,) = read(os.fsdecode(raw))
    assert item.id is not None and item.id.endswith("caf\ufffd.png")
    item.id.encode()


def test_pictures_that_cannot_be_read_are_counted(folder):
    for name in ("a.heic", "deep/b.HEIC", "c.svg", "notes.txt"):
        Path("pictures", name).write_text("x")
    with pytest.warns(UserWarning, match=r"^3 pictures of pictures .*\(2 \.heic, 1 \.svg\): conv"):
        assert len(read("pictures")) == 4
    Path("phone").mkdir()
    Path("phone/a.jxl").write_text("x")
    with pytest.raises(ItemError, match=r"1 pictures of phone cannot be read \(1 \.jxl\)"):
        read("phone")
    with pytest.raises(ItemError, match=r"cannot read \.jxl pictures: convert phone/a\.jxl"):
        read("phone/a.jxl")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=repr)
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=repr)
def test_lines_end_in_any_way_and_only_there(folder, end, mark):
    Path("t.txt").write_bytes((mark + end.join(["a cat", "b\u2028c", "", "d"]) + end).encode())
    assert [(i.id, i.text) for i in read("t.txt")] == [
        ("t.txt:1", "a cat"),
        ("t.txt:2", "b\u2028c"),
        ("t.txt:4", "d"),
    ]
    Path("t.jsonl").write_bytes((mark + end.join(['"a\u2028b"', '{"text": "c"}'])).encode())
    assert [i.text for i in read("t.jsonl")] == ["a\u2028b", "c"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("name", ["t.txt", "t.jsonl"])
def test_wider_encodings_are_refused_with_the_line(folder, encoding, name):
    Path(name).write_bytes('"a cat"\n"b"\n'.encode(encoding))
    with pytest.raises(ItemError, match=rf"^{name}:1 .*convert the file to UTF-8"):
        read(name)


def test_a_data_uri_is_a_picture_and_a_url_is_shown_as_it_was_given(folder):
    content = Path("pictures/b.png").read_bytes()
    uri = "data:image/png;base64," + base64.b64encode(content).decode()
    Path("t.jsonl").write_text(json.dumps({"image": uri}) + "\n")
    (item,) = read("t.jsonl")
    assert item.image == content and item.id == "t.jsonl:1"
    url = "https://example.com/a.png"
    Path("u.jsonl").write_text(json.dumps({"image": url}) + "\n")
    for argument in ("u.jsonl", url):
        with pytest.raises(ItemError, match=f"{url}.*download it"):
            read(argument)
    Path("v.jsonl").write_text(json.dumps({"image": "data:," + "!" * 9000}) + "\n")
    for argument in (uri * 20, "x" * 9000):
        with pytest.raises(ItemError) as caught:
            read(argument)
        assert len(str(caught.value)) < 400
