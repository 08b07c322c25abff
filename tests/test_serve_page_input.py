"""The page in a real browser: what it is given, small screens, keys, errors."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the page is served by the extra serve")

from page_doubles import CHAIN, error, names, ranking
from PIL import Image

pytest_plugins = ["page_fixtures"]


def picture_of(item: dict[str, str]) -> Image.Image:
    head, data = item["image"].split(",", 1)
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return Image.open(io.BytesIO(base64.b64decode(data)))


def scrolls_sideways(page: Any, width: int) -> bool:
    # A phone makes its window as wide as the page, so the window's own width tells nothing.
    return page.evaluate("document.documentElement.scrollWidth") > width


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_never_scrolls_sideways(opened, server, dark):
    long = "an unbroken name " + "x" * 300
    server.answers = [
        [("ranking", ranking(12, first=4, mode="reason", reasoning=f"{CHAIN} {long}"))],
        [("ranking", ranking(3, first=2))],
        [("ranking", ranking(3, first=2))],
        error(413, f"max_documents: {long}"),
    ]
    scheme = "dark" if dark else "light"
    page = opened(360, 740, is_mobile=True, has_touch=True, color_scheme=scheme)
    assert not scrolls_sideways(page, 360)
    page.get_by_role("button", name="a lion").tap()
    page.wait_for_selector(".card.is-answer")
    assert not scrolls_sideways(page, 360)
    page.get_by_role("button", name="Clear").tap()
    page.get_by_label("Texts of candidates").fill(f"{long}\nshort\n{long}")
    assert not scrolls_sideways(page, 360)
    page.get_by_role("button", name="Add texts").tap()
    page.locator(".switch").tap()
    page.get_by_role("button", name="Rank").tap()
    page.wait_for_selector("#comparison:not([hidden])")
    assert not scrolls_sideways(page, 360)
    page.get_by_role("button", name="Rank").tap()
    page.wait_for_selector("#problem:not([hidden])")
    assert not scrolls_sideways(page, 360)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 21, 25)" if dark else "rgb(246, 245, 242)"
    )


def test_errors_are_said_in_words(opened, server):
    late = {"error": {"message": "slow", "type": "timeout_error"}}
    page = opened()
    page.get_by_label("Texts of candidates").fill("one\ntwo")
    page.get_by_role("button", name="Add texts").click()
    page.get_by_label("Query", exact=True).fill("a number")
    problem = page.get_by_role("alert")
    answers: list[tuple[Any, str]] = [
        (
            error(413, "60 documents are more than 50"),
            "60 documents are more than 50. Here: remove",
        ),
        (error(429, "the queue is full", **{"Retry-After": "3"}), "Try again in 3 s."),
        (error(503, "not ready"), "Wait a moment and rank again."),
        (error(504, "too late"), "Here: choose fast"),
        (error(500, "the server failed"), "please report it"),
        ([("reasoning", {"text": "I"})], "The connection ended before the ranking came."),
        ([("reasoning", {"text": "I"}), ("error", late)], "Slow. Here: choose fast"),
    ]
    for answer, said in answers:
        server.answers = [answer]
        page.get_by_role("button", name="Rank").click()
        problem.filter(has_text=said).wait_for()
        assert page.locator("#outcome").is_hidden()
    server.answers = [[("ranking", ranking(2))]]
    page.get_by_role("button", name="Rank").click()
    page.wait_for_selector(".card.is-answer")
    assert problem.is_hidden()


def test_a_server_that_is_gone_is_said_in_words(opened, watch):
    page = opened()
    page.route("**/v1/rerank", lambda route: route.abort())
    page.get_by_role("button", name="a pear").click()
    page.get_by_role("alert").wait_for()
    assert "The server cannot be reached." in page.get_by_role("alert").inner_text()
    assert "ERR_FAILED" in watch.complaints.pop()  # the browser's own


def test_a_key_is_asked_for_and_kept_in_memory_only(opened, server):
    server.answers = [error(401, "this server wants an API key"), [("ranking", ranking(12))]]
    page = opened()
    assert page.locator("#key").is_hidden()
    page.get_by_role("button", name="a pear").click()
    page.get_by_label("This server asks for an API key").fill("secret-key")
    page.keyboard.press("Enter")
    page.wait_for_selector(".card.is-answer")
    assert server.keys == ["", "Bearer secret-key"]
    assert page.locator("#key").is_hidden()
    assert (
        page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    )


def test_text_of_users_and_models_never_becomes_markup(opened, server, watch):
    nasty = "<img src=x onerror=alert(1)><b>"
    server.answers = [
        [
            (
                "ranking",
                ranking(2, first=1, mode="reason", reasoning=f"{nasty} [1] inspect [2]: {nasty}"),
            )
        ]
    ]
    page = opened()
    page.get_by_label("Texts of candidates").fill(f"{nasty}\nharmless")
    page.get_by_role("button", name="Add texts").click()
    page.get_by_label("Query", exact=True).fill(nasty)
    page.keyboard.press("Enter")
    page.wait_for_selector(".card.is-answer")
    assert page.locator("img").count() == 0
    assert page.locator("#steps").inner_text().count(nasty) == 3  # twice as text, once as a chip
    with pytest.raises(Exception, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<p>'")
    assert "TrustedHTML" in watch.complaints.pop()


def test_pictures_are_scaled_down_dropped_and_pasted(opened, server, tmp_path):
    Image.new("RGB", (1024, 700), "red").save(tmp_path / "large.jpg")
    Image.new("RGBA", (900, 30), (0, 0, 0, 0)).save(tmp_path / "wide.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    server.answers = [[("ranking", ranking(4))]]
    page = opened()
    files = [tmp_path / name for name in ("large.jpg", "wide.png", "broken.png")]
    page.locator("#files").set_input_files(files)
    page.get_by_text("broken.png cannot be read").wait_for()
    transfer = """(kind) => {
      const transfer = new DataTransfer();
      transfer.setData('text/plain', 'first line\\nsecond line');
      const kept = { dataTransfer: transfer, clipboardData: transfer };
      const options = { bubbles: true, cancelable: true, ...kept };
      const Kind = kind === 'paste' ? ClipboardEvent : DragEvent;
      const event = new Kind(kind, options);
      document.getElementById('list').dispatchEvent(event);
    }"""
    page.evaluate(transfer, "drop")
    assert names(page) == ["large", "wide", "first line", "second line"]
    page.evaluate(transfer, "paste")
    assert page.locator("#cards .card").count() == 6
    page.locator("#cards .card").last.hover()
    for _ in range(2):
        page.locator("#cards .card .remove").last.click(force=True)
    page.locator("#query-file").set_input_files(files[0])
    page.wait_for_selector("#query-picture .pic")
    page.get_by_role("button", name="Rank").click()
    page.wait_for_selector(".card.is-answer")
    (body,) = server.bodies
    assert [picture_of(item).size for item in (body["query"], *body["documents"][:2])] == [
        (512, 350), (512, 350), (512, 17),
    ]  # fmt: skip
    assert picture_of(body["documents"][1]).mode == "RGBA"
    assert body["documents"][2:] == [{"text": "first line"}, {"text": "second line"}]


def test_every_field_has_a_label(opened):
    page = opened()
    for field in page.locator("input, textarea, button").all():
        named = field.evaluate(
            "one => (one.labels?.[0]?.textContent || one.ariaLabel || one.textContent).trim()"
        )
        assert named, field.evaluate("one => one.outerHTML")
