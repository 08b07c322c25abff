"""The page, the terminal and the response form of a ranking."""

from __future__ import annotations

import base64
import io
import json
import re
import stat
from html.parser import HTMLParser

import pytest
from PIL import Image
from rich.console import Console

from retrv_r1.report import print_ranking, render_html, to_response, write_html
from retrv_r1.report.html import data_uri
from retrv_r1.report.view import Fragment, display_name, printable, reasoning_steps, token_shares
from retrv_r1.types import Item, RankedItem, RankedResults, RetrvError, TokenCounts

HOSTILE = "<script>alert(1)</script> \"'& </style><img src=x onerror=alert(2)>"

THOUGHT = "ideal: red. close: [3] [2]. inspect [3] green, no. inspect [2] red, yes. so [2]"


def results(items: list[Item], scores=(0.9, 0.5, 0.1), **changes) -> RankedResults:
    order = changes.pop("order", (1, 0, 2))
    inspected = changes.pop("inspected", (2, 1))
    ranking = [
        RankedItem(i, s, items[i], i in inspected) for i, s in zip(order, scores, strict=False)
    ]
    values = {
        "query": Item(text="a red picture"),
        "answer": 1,
        "reasoning": THOUGHT,
        "model": "tiny",
        "timings": {"features": 0.02, "decode": 1.5},
        "tokens": TokenCounts(prompt=40, candidates=9, inspected=12, generated=20),
    }
    return RankedResults(ranking=tuple(ranking), inspected=inspected, **(values | changes))


@pytest.fixture
def items(tmp_path) -> list[Item]:
    for name, colour in (("blue", "blue"), ("red", "red"), ("green", "green")):
        Image.new("RGB", (30, 20), colour).save(tmp_path / f"{name}.png")
    names = ("blue", "red", "green")
    return [Item(image=tmp_path / f"{n}.png", id=f"pictures/{n}.png") for n in names]


class Page(HTMLParser):
    """The tags and the text of a page, style apart."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] != "style":
            self.text += data

    def classes(self, name: str) -> list[dict]:
        return [attrs for _, attrs in self.tags if name in (attrs.get("class") or "").split()]


def terminal(value: RankedResults, candidates=3, **options) -> str:
    out = io.StringIO()
    console = Console(file=out, width=options.pop("width", 100), **options)
    print_ranking(value, console, candidates=candidates)
    return out.getvalue()


def test_page_shows_everything_and_loads_nothing(items):
    page = render_html(results(items))
    seen = Page(page)
    words = re.sub(r"\s+", " ", seen.text)
    for expected in ("a red picture", "tiny", "0.900", "ideal: red. close:", "features", "1.52 s"):
        assert expected in words
    assert [attrs["id"] for attrs in seen.classes("card")] == ["c2", "c1", "c3"]
    assert "is-answer" in seen.classes("card")[0]["class"]
    assert len(seen.classes("badge")) == 2
    assert len(re.findall(r"url\(\"data:image/(?:png|jpeg);base64,", page)) == 3
    assert not re.search(r"https?:|<script|<link|@import|src=", page)
    for tag, attrs in seen.tags:
        assert not any(name.startswith("on") for name in attrs), tag


def test_reasoning_references_become_chips_of_their_candidates(items):
    chips = Page(render_html(results(items))).classes("chip")
    assert [chip.get("href") for chip in chips] == ["#c3", "#c2", "#c3", "#c2", "#c2"]


def test_candidates_left_out_by_top_k_keep_their_thumbnails(items):
    cut = results(items, order=(1,), scores=(0.9,))
    page = render_html(cut, candidates=items)
    assert "the best 1 of 3" in page and ".p-c2{background" in page and ".p-c0{" not in page
    assert [c.get("href") for c in Page(page).classes("chip")] == [None, "#c2"] * 2 + ["#c2"]
    assert "p-c2" not in render_html(cut)  # without the list their pictures are unknown


@pytest.mark.parametrize("field", ["query", "text", "id", "reasoning", "model", "title"])
def test_text_from_users_is_escaped_everywhere(field):
    items = [Item(text=f"text {k}") for k in range(3)]
    changes = {"query": {"query": Item(text=HOSTILE)}, "reasoning": {"reasoning": HOSTILE + " [2]"}}
    changes["model"] = {"model": HOSTILE}
    if field in ("text", "id"):
        items[1] = Item(text=HOSTILE if field == "text" else "x", id=HOSTILE)
    page = render_html(
        results(items, **changes.get(field, {})), title=HOSTILE if field == "title" else None
    )
    tags = {tag for tag, _ in Page(page).tags}
    assert not tags & {"script", "img"}
    assert "<script" not in page and "onerror=alert(2)>" not in page
    assert "&lt;script&gt;" in page and page.count("</style>") == 1


def test_hostile_picture_names_and_keys_stay_out_of_the_style(tmp_path):
    path = tmp_path / 'a"){}<script>.png'
    try:
        Image.new("RGB", (3, 3)).save(path)
    except OSError:
        path = tmp_path / "a.png"
        Image.new("RGB", (3, 3)).save(path)
    page = render_html(results([Item(image=path)] * 3))
    style = page[page.index("<style>") : page.index("</style>")]
    assert "script" not in style and page.count("</style>") == 1


def test_picture_query_text_answers_fast_mode_and_empty_list():
    picture = Item(image=Image.new("RGBA", (9, 9)), text=None)
    texts = [Item(text="one"), Item(text="two", id="second"), Item(text="three")]
    page = render_html(results(texts, query=picture, mode="fast", reasoning="", inspected=()))
    assert "picture query · Retrv-R1" in page and "fast mode" in page
    assert "Reasoning</h2>" not in page and "inspected in full" not in page and ">second" in page
    empty = RankedResults(Item(text="q"), None, ())
    assert "There were no candidates." in render_html(empty, candidates=[])
    assert "had to enforce the format" in render_html(results(texts, well_formed=False))


def test_page_is_deterministic_and_small(items):
    value = results(items * 20, order=tuple(range(60)), scores=[1 - k / 60 for k in range(60)])
    page = render_html(value)
    assert page == render_html(value) and len(page) < 150_000


def test_data_uri_is_bounded_and_takes_the_smaller_form():
    flat = data_uri(Image.new("RGB", (1000, 500), "red"), 100)
    noisy = data_uri(Image.effect_noise((300, 300), 90).convert("RGB"), 200)
    assert flat.startswith("data:image/png") and noisy.startswith("data:image/jpeg")
    picture = Image.open(io.BytesIO(base64.b64decode(flat.partition(",")[2])))
    assert picture.size == (100, 50)


def test_write_html_replaces_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "new" / "page.html"
    write_html("é1", path)
    write_html("é2", path)
    assert path.read_text(encoding="utf-8") == "é2"
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(RetrvError, match=r"cannot write .*page\.html: No space left"):
        write_html("é3", path)
    assert path.read_text(encoding="utf-8") == "é2"
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]
    with pytest.raises(RetrvError, match="cannot write"):
        write_html("x", path / "below-a-file.html")


def test_reasoning_steps():
    steps = reasoning_steps("ideal: x [9]. close: [1] [2].\ninspect [2] y, no. Hm. so [1]", 2)
    assert [step.inspected for step in steps] == [None, 1, None]
    assert steps[0].fragments == (
        Fragment("ideal: x [9]. close: "),
        Fragment("[1]", 0),
        Fragment(" "),
        Fragment("[2]", 1),
        Fragment("."),
    )
    assert steps[1].fragments == (Fragment("y, no."),)
    assert steps[2].fragments == (Fragment("Hm. so "), Fragment("[1]", 0))
    assert reasoning_steps("", 3) == [] and reasoning_steps("\n \n", 3) == []
    assert [s.inspected for s in reasoning_steps("inspect [1] inspect [2]", 2)] == [0, 1]
    assert reasoning_steps("inspect [0] inspect [3]", 2)[0].inspected is None


def test_printable_keeps_scripts_and_joins_but_no_steering():
    assert printable("\x1b[31mred\x07\u202e\ud800\t.") == "\ufffd[31mred\ufffd\ufffd\ufffd ."
    for text in ("👨\u200d👩\u200d👧", "न\u200dक्ष", "日本語", "naïve\nline"):
        assert printable(text) == text


def test_names():
    assert display_name(Item(image="a/b.png")) == "b.png"
    assert display_name(Item(image=b"..."), 4) == "picture 5"
    assert display_name(Item(text="x", id="")) == "x"


def test_token_shares_add_up(items):
    shares = token_shares(results(items))
    assert [share.value for share in shares] == [31, 9, 12, 20]
    assert sum(share.percent for share in shares) == pytest.approx(100)
    assert {s.percent for s in token_shares(RankedResults(Item(text="q"), None, ()))} == {0}


def test_terminal_ranking(items):
    lines = terminal(results(items)).splitlines()
    assert re.match(r"1\s+0\.900 █+▊?\s+\[2\] pictures/red\.png\s+answer, inspected", lines[1])
    assert re.match(r"2\s+0\.500 █+\s+\[1\] pictures/blue\.png\s*$", lines[2])
    text = "\n".join(lines)
    assert "▸ inspects [3] green, no." in text and "so [2]" in text
    assert "features 20 ms, decode 1.50 s" in text
    assert "3 candidates; 40 prompt rows, 9 of them candidates" in text
    assert "12 rows inspected, 20 tokens written" in text


def test_the_probability_that_nothing_fits_is_shown_where_it_is_known(items):
    shown = {0.123: "12 %", 0.0: "0 %", 0.004: "0.4 %", 1.0: "100 %"}
    for value, text in shown.items():
        known = results(items, none_of_these=value)
        assert f"none of these: {text}" in terminal(known)
        assert f"<b>{text}</b> none of these" in render_html(known)
        assert to_response(known)["retrv"]["none_of_these"] == value
    assert "none of these" not in terminal(results(items)) + render_html(results(items))


def test_terminal_is_narrow_and_safe(items):
    hostile = [Item(text="[red]x[/] \x1b]0;title\x07 " + "long " * 50)] * 3
    text = terminal(results(hostile), width=60)
    assert "\x1b" not in text and "[red]x[/]" in text
    assert max(map(len, text.splitlines()[:4])) <= 60 and "…" in text
    assert "had to enforce the format" in terminal(results(items, well_formed=False))
    fast = results(items, well_formed=False, mode="fast", reasoning="")
    assert "enforce the format" not in terminal(fast) + render_html(fast)


def test_terminal_without_unicode(items):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_ranking(results(items), Console(file=stream, width=100), candidates=3)
    stream.flush()
    assert b"0.900 ######### " in stream.buffer.getvalue()


def test_response_form(items):
    response = to_response(results(items), request_id="r", created=7)
    assert json.loads(json.dumps(response)) == response
    assert list(response) == ["id", "object", "created", "model", "results", "usage", "retrv"]
    assert response["results"][0] == {
        "index": 1,
        "id": "pictures/red.png",
        "relevance_score": 0.9,
        "truncated": False,
    }
    assert response["usage"] == {
        "prompt_tokens": 52,
        "completion_tokens": 20,
        "total_tokens": 72,
        "image_tokens": 0,
        "cached_tokens": 0,
    }
    assert set(response["retrv"]) == {
        *("answer", "reasoning", "inspected", "timings", "mode", "well_formed"),
        *("device", "dtype", "query_truncated", "none_of_these"),
    }
    assert to_response(results(items))["id"] != to_response(results(items))["id"]
