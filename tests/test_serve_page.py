"""The page at ``/``: its files and their headers, and its use in a real browser."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the page is served by the extra serve")

from fastapi import FastAPI
from page_doubles import CHAIN, FLAGS, Server, Wait, Watch, browser_path, double, error, ranking
from page_doubles import serving as serve
from PIL import Image
from starlette.testclient import TestClient

from retrv_r1.serve.page import mount_page

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "retrv_r1" / "serve" / "page"
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file())
TIGER = 4
"""Index of the tiger in the built-in example."""


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    mount_page(app)
    return TestClient(app)


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with serve(double) as server:
        yield server


@pytest.fixture
def server(running) -> Server:
    running.forget()
    return running


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = browser_path()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, server, watch) -> Iterator[Callable[..., Any]]:
    """Opens the page; at the end nothing may have gone elsewhere or complained."""
    contexts = []

    def open_page(width: int = 1180, height: int = 900, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        watch.follow(page)
        page.goto(server.url)
        until(page, "#facts", "doublecpu")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert watch.complaints == []
    assert watch.hosts == {server.url.split("/")[2]}


def choose(page: Any, mode: str) -> None:
    page.locator(f"input[value={mode}] + span").click()


def until(page: Any, selector: str, text: str) -> None:
    """Waits until an element has exactly this text."""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_text(text, timeout=20_000)


def names(page: Any) -> list[str]:
    return page.eval_on_selector_all("#cards .card", "cards => cards.map((card) => card.title)")


def picture_of(item: dict[str, str]) -> Image.Image:
    head, data = item["image"].split(",", 1)
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return Image.open(io.BytesIO(base64.b64decode(data)))


def scrolls_sideways(page: Any, width: int) -> bool:
    # A phone makes its window as wide as the page, so the window's own width tells nothing.
    return page.evaluate("document.documentElement.scrollWidth") > width


# --- files and headers -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "page/report.css", *(f"page/{name}" for name in FILES)])
def test_a_file_comes_with_the_policy_and_is_not_sent_twice(client, name):
    if name == "page/index.html":
        assert client.get(f"/{name}").status_code == 404  # it is at /
        return
    first = client.get(f"/{name}")
    assert first.status_code == 200
    policy = first.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy and "*" not in policy and "http" not in policy
    assert first.headers["cache-control"] == "no-cache"
    assert first.headers["x-content-type-options"] == "nosniff"
    again = client.get(f"/{name}", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = client.get(f"/{name}", headers={"If-None-Match": '"another"'})
    assert (other.status_code, other.content) == (200, first.content)
    assert client.head(f"/{name}").headers["content-length"] == str(len(first.content))


@pytest.mark.parametrize(
    "name", ["../page.py", "%2e%2e/page.py", "example", "no.js", "/etc/passwd"]
)
def test_nothing_beside_the_page_is_served(client, name):
    assert client.get(f"/page/{name}").status_code == 404


def test_the_page_has_the_style_of_the_report(client):
    style = ROOT / "retrv_r1" / "report" / "page.css"
    assert client.get("/page/report.css").content == style.read_bytes()


def test_the_page_names_no_other_host_and_makes_no_markup_of_strings():
    for name in FILES:
        if name.endswith((".js", ".css", ".html", ".svg")):
            text = (FOLDER / name).read_text().replace("http://www.w3.org/2000/svg", "")
            assert not re.search(r"https?:|//[a-z]+\.|innerHTML|insertAdjacent|eval\(", text), name


def test_the_example_is_of_the_demo_pictures_and_credits_them():
    pictures = sorted(FOLDER.glob("example/*.png"))
    assert len(pictures) == 12
    for picture in pictures:
        assert picture.read_bytes() == (ROOT / "examples/demo" / picture.name).read_bytes()
    credit = (FOLDER / "example/ATTRIBUTION.md").read_text()
    assert (
        credit.split("(source:")[1].split("A file's name")[0].split()
        == ((ROOT / "examples/demo/ATTRIBUTION.md").read_text())
        .split("(source:")[1]
        .split("A file's name")[0]
        .split()
    )


# --- in a browser ----------------------------------------------------------------------------


def test_the_example_is_ranked_at_once(opened, server):
    server.answers = [[("ranking", ranking(12, first=TIGER))]]
    page = opened()
    choose(page, "fast")
    page.get_by_role("button", name="a tiger face").click()
    page.wait_for_selector(".card.is-answer")
    (body,) = server.bodies
    assert body["query"] == "a tiger face"
    assert body["stream"] is True
    assert body["retrv"] == {"mode": "fast", "reading": "compressed"}
    assert [set(item) for item in body["documents"]] == [{"image"}] * 12
    # A small picture reaches the server unchanged.
    data = base64.b64decode(body["documents"][TIGER]["image"].split(",")[1])
    assert data == (FOLDER / "example/tiger-face.png").read_bytes()
    assert names(page)[:3] == ["tiger-face", "fox", "green-apple"]
    assert page.locator("#answer .answer-name").text_content() == "tiger-face"
    assert page.locator("#answer .doubt").text_content() == "nothing fits0.125"
    assert page.locator(".card .score strong").all_text_contents()[:2] == ["0.750", "0.375"]
    assert page.locator("#thoughts").is_hidden()
    bill = page.locator("#bill").inner_text()
    for words in ("decode\n300 ms", "candidates\n36", "7 of 56 rows", "2 of 12 items", "50 kB"):
        assert words in bill


def test_reasoning_streams_and_inspected_candidates_light_up(opened, server):
    first, second = Wait(), Wait()
    pieces = ["Wanted: a ti", "ger. Close: [5] [", "8].\ninspect [5]"]
    rest = CHAIN.removeprefix("".join(pieces))
    server.answers = [
        [
            ("reasoning", {"text": pieces[0], "vote": 0}),
            first,
            *(("reasoning", {"text": piece, "vote": 0}) for piece in pieces[1:]),
            ("reasoning", {"text": "of another chain", "vote": 1}),
            ("inspection", {"index": TIGER, "vote": 0}),
            ("draft", ranking(12, first=3)),
            second,
            ("reasoning", {"text": rest, "vote": 0}),
            ("inspection", {"index": 7, "vote": 0}),
            (
                "ranking",
                ranking(12, first=TIGER, mode="reason", reasoning=CHAIN, inspected=[TIGER, 7]),
            ),
        ]
    ]
    page = opened()
    choose(page, "reason")
    page.get_by_label("inspections").fill("2")
    page.get_by_role("button", name="a tiger face").click()
    until(page, "#steps", "Wanted: a ti")
    assert page.locator(".is-inspected").count() == 0
    first.go()
    page.wait_for_selector("#c5.is-inspected")
    assert page.locator(".is-inspected").count() == 1
    page.get_by_text("At first sight: cat-face").wait_for()
    assert page.locator(".card .score").count() == 0  # no ranking yet
    second.go()
    page.wait_for_selector(".card.is-answer")
    assert server.bodies[0]["retrv"] == {
        "mode": "reason", "max_inspections": 2, "votes": 1, "reading": "compressed",
    }  # fmt: skip
    steps = page.locator("#steps li").all_inner_texts()
    assert [" ".join(step.split()) for step in steps] == [
        "Wanted: a tiger. Close: 5 8 .",
        "inspects 5 : stripes.",
        "inspects 8 : a mane.",
        "So 5",
    ]
    assert page.locator("#steps .chip.is-answer").count() == 3
    assert page.locator(".is-inspected").evaluate_all("all => all.map((one) => one.id)") == [
        "c5", "c8",
    ]  # fmt: skip
    spoken = page.locator("#spoken p").all_text_contents()
    assert len(spoken) == 5 and spoken[-1] == "Answer: candidate 5, tiger-face"


def test_what_mentions_a_candidate_lights_its_card(opened, server):
    server.answers = [[("ranking", ranking(12, first=TIGER, mode="reason", reasoning=CHAIN))]]
    page = opened()
    page.get_by_role("button", name="a tiger face").click()
    page.wait_for_selector(".card.is-answer")
    lit = "document.querySelector('.card.is-lit')?.id"
    page.locator("#steps .chip", has_text="8").first.hover()
    assert page.evaluate(lit) == "c8"
    page.mouse.move(0, 0)
    assert page.evaluate(lit) is None
    page.locator("#steps .chip").first.focus()
    assert page.evaluate(lit) == "c5"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "c5"


def test_the_keyboard_is_enough(opened, server):
    server.answers = [[("ranking", ranking(4, first=2))], [("reasoning", {"text": "Well"}), Wait()]]
    page = opened()
    press = page.keyboard.press
    page.get_by_role("button", name="Choose pictures").focus()
    press("Tab")
    page.keyboard.type("one\ntwo\n\n three \nfour")
    press("Control+Enter")
    press("Shift+Tab")
    press("/")
    page.keyboard.type("a number")
    press("Enter")
    page.wait_for_selector(".card.is-answer")
    assert [item["text"] for item in server.bodies[0]["documents"]] == [
        "one",
        "two",
        "three",
        "four",
    ]
    assert names(page) == ["three", "one", "two", "four"]
    page.locator("#cards [tabindex='0']").focus()
    focused = "document.activeElement.title"
    press("ArrowDown")
    assert page.evaluate(focused) == "one"
    press("End")
    assert page.evaluate(focused) == "four"
    press("ArrowLeft")
    assert page.evaluate(focused) == "two"
    press("Delete")
    assert names(page) == ["one", "three", "four"]  # in their own order again: not ranked
    press("/")
    press("Enter")
    until(page, "#steps", "Well")
    press("Escape")
    page.get_by_role("heading", name="Stopped").wait_for()
    assert server.cancelled.wait(10)
    assert page.get_by_role("button", name="Rank").is_visible()


def test_the_stop_button_hangs_up(opened, server):
    server.answers = [[Wait()]]
    page = opened()
    page.get_by_role("button", name="a taxi").click()
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("heading", name="Stopped").wait_for()
    assert server.cancelled.wait(10)
    assert page.locator("#cards .card").count() == 12


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_never_scrolls_sideways(opened, server, dark):
    long = "an unbroken name " + "x" * 300
    server.answers = [
        [("ranking", ranking(12, first=TIGER, mode="reason", reasoning=f"{CHAIN} {long}"))],
        [("ranking", ranking(3, first=2))],
        [("ranking", ranking(3, first=2))],
        error(413, f"max_documents: {long}"),
    ]
    scheme = "dark" if dark else "light"
    page = opened(360, 740, is_mobile=True, has_touch=True, color_scheme=scheme)
    assert not scrolls_sideways(page, 360)
    page.get_by_role("button", name="a tiger face").tap()
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


def test_full_against_compressed_shows_both(opened, server):
    full = ranking(12, first=2)
    full["retrv"]["bill"] = full["retrv"]["bill"] | {
        "tokens": full["retrv"]["tokens"] | {"prompt": 224, "candidates": 204},
        "seconds": {"features": 0.0, "prefill": 1.11},
    }
    server.answers = [[("ranking", ranking(12, first=TIGER))], [("ranking", full)]]
    page = opened()
    choose(page, "reason")
    page.locator(".switch").click()
    page.get_by_role("button", name="a tiger face").click()
    page.wait_for_selector("#comparison:not([hidden])")
    assert [body["retrv"] for body in server.bodies] == [
        {"mode": "fast", "reading": "compressed"},
        {"mode": "fast", "reading": "full"},
    ]
    assert server.bodies[0]["documents"] == server.bodies[1]["documents"]
    left, right = page.locator(".versus > div").all_inner_texts()
    assert "another answer" in page.locator("#comparison h2").inner_text().lower()
    # Seconds leave out the encoding, which is cached for the second: 0.02 + 0.05 + 0.3.
    assert "56 rows" in left and "370 ms" in left and "4.0 × fewer rows" in left
    assert "3.0 × the speed" in left
    assert "224 rows" in right and "1.11 s" in right
    assert names(page)[0] == "tiger-face"  # the grid keeps the compressed ranking
    moves = page.locator(".versus > div:last-child .moved").all_text_contents()
    assert moves[:6] == ["▲ 3", "=", "=", "▲ 1", "▼ 4", "="]


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
    page.get_by_role("button", name="a taxi").click()
    page.get_by_role("alert").wait_for()
    assert "The server cannot be reached." in page.get_by_role("alert").inner_text()
    assert "ERR_FAILED" in watch.complaints.pop()  # the browser's own


def test_a_key_is_asked_for_and_kept_in_memory_only(opened, server):
    server.answers = [error(401, "this server wants an API key"), [("ranking", ranking(12))]]
    page = opened()
    assert page.locator("#key").is_hidden()
    page.get_by_role("button", name="a taxi").click()
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
      const options = { bubbles: true, cancelable: true, dataTransfer: transfer, clipboardData: transfer };
      const event = kind === 'paste' ? new ClipboardEvent(kind, options) : new DragEvent(kind, options);
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


def test_a_ranking_needs_a_query_and_candidates(opened, server):
    page = opened()
    page.get_by_role("button", name="Rank").click()
    page.get_by_text("Type a query first").wait_for()
    page.keyboard.type("a fox")
    page.keyboard.press("Enter")
    page.get_by_text("Add candidates first").wait_for()
    assert server.bodies == []


def test_every_field_has_a_label(opened):
    page = opened()
    for field in page.locator("input, textarea, button").all():
        named = field.evaluate(
            "one => (one.labels?.[0]?.textContent || one.ariaLabel || one.textContent).trim()"
        )
        assert named, field.evaluate("one => one.outerHTML")
