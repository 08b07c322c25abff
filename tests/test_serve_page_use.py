"""The page in a real browser: a ranking is asked for, watched, compared, stopped."""

from __future__ import annotations

import base64
import re

import pytest

pytest.importorskip("fastapi", reason="the page is served by the extra serve")

from page_doubles import CHAIN, EXAMPLE, Wait, choose, names, ranking, serving, until

from retrv_r1 import Reranker
from retrv_r1.serve.app import create_app
from retrv_r1.serve.auth import Keys
from retrv_r1.serve.service import RerankService
from retrv_r1.serve.settings import Settings

pytest_plugins = ["page_fixtures"]
LION = 4
"""Index of the lion in the built-in example."""


def test_the_example_is_ranked_at_once(opened, server):
    server.answers = [[("ranking", ranking(12, first=LION))]]
    page = opened()
    choose(page, "fast")
    page.get_by_role("button", name="a lion").click()
    page.wait_for_selector(".card.is-answer")
    (body,) = server.bodies
    assert body["query"] == "a lion"
    assert body["stream"] is True
    assert body["retrv"] == {"mode": "fast", "reading": "compressed"}
    assert [set(item) for item in body["documents"]] == [{"image"}] * 12
    # A small picture reaches the server unchanged.
    data = base64.b64decode(body["documents"][LION]["image"].split(",")[1])
    assert data == (EXAMPLE / "lion-face.png").read_bytes()
    assert names(page)[:3] == ["lion-face", "fox", "green-apple"]
    assert page.locator("#answer .answer-name").text_content() == "lion-face"
    assert page.locator("#answer .doubt").text_content() == "nothing fits0.125"
    assert page.locator(".card .score strong").all_text_contents()[:2] == ["0.750", "0.375"]
    assert page.locator("#thoughts").is_hidden()
    bill = page.locator("#bill").inner_text()
    for words in ("decode\n300 ms", "candidates\n36", "7 of 56 rows", "2 of 12 items", "50 kB"):
        assert words in bill


def test_reasoning_streams_and_inspected_candidates_light_up(opened, server):
    first, second = Wait(), Wait()
    pieces = ["Wanted: a li", "on. Close: [5] [", "8].\ninspect [5]"]
    rest = CHAIN.removeprefix("".join(pieces))
    server.answers = [
        [
            ("reasoning", {"text": pieces[0], "vote": 0}),
            first,
            *(("reasoning", {"text": piece, "vote": 0}) for piece in pieces[1:]),
            ("reasoning", {"text": "of another chain", "vote": 1}),
            ("inspection", {"index": LION, "vote": 0}),
            ("draft", ranking(12, first=3)),
            second,
            ("reasoning", {"text": rest, "vote": 0}),
            ("inspection", {"index": 7, "vote": 0}),
            (
                "ranking",
                ranking(12, first=LION, mode="reason", reasoning=CHAIN, inspected=[LION, 7]),
            ),
        ]
    ]
    page = opened()
    choose(page, "reason")
    page.get_by_label("inspections").fill("2")
    page.get_by_role("button", name="a lion").click()
    until(page, "#steps", "Wanted: a li")
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
        "Wanted: a lion. Close: 5 8 .",
        "inspects 5 : a mane.",
        "inspects 8 : stripes.",
        "So 5",
    ]
    assert page.locator("#steps .chip.is-answer").count() == 3
    assert page.locator(".is-inspected").evaluate_all("all => all.map((one) => one.id)") == [
        "c5", "c8",
    ]  # fmt: skip
    spoken = page.locator("#spoken p").all_text_contents()
    assert len(spoken) == 5 and spoken[-1] == "Answer: candidate 5, lion-face"


def test_what_mentions_a_candidate_lights_its_card(opened, server):
    server.answers = [[("ranking", ranking(12, first=LION, mode="reason", reasoning=CHAIN))]]
    page = opened()
    page.get_by_role("button", name="a lion").click()
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
    page.get_by_role("button", name="a pear").click()
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("heading", name="Stopped").wait_for()
    assert server.cancelled.wait(10)
    assert page.locator("#cards .card").count() == 12


def test_full_against_compressed_shows_both(opened, server):
    full = ranking(12, first=2)
    full["retrv"]["bill"] = full["retrv"]["bill"] | {
        "tokens": full["retrv"]["tokens"] | {"prompt": 224, "candidates": 204},
        "seconds": {"features": 0.0, "prefill": 1.11},
    }
    server.answers = [[("ranking", ranking(12, first=LION - 1))], [("ranking", full)]]
    page = opened()
    page.evaluate("Math.random = () => 0")  # the list is then rotated by one
    choose(page, "reason")
    page.locator(".switch").click()
    page.get_by_role("button", name="a lion").click()
    page.wait_for_selector("#comparison:not([hidden])")
    assert [body["retrv"] for body in server.bodies] == [
        {"mode": "fast", "reading": "compressed"},
        {"mode": "fast", "reading": "full"},
    ]
    first, second = (body["documents"] for body in server.bodies)
    assert first == second
    lion = (EXAMPLE / "lion-face.png").read_bytes()
    assert base64.b64decode(first[LION - 1]["image"].split(",")[1]) == lion
    left, right = page.locator(".versus > div").all_inner_texts()
    assert "another answer" in page.locator("#comparison h2").inner_text().lower()
    # Seconds leave out the encoding, which is cached for the second: 0.02 + 0.05 + 0.3.
    assert "56 rows" in left and "370 ms" in left and "4.0 × fewer rows" in left
    assert "3.0 × the speed" in left
    assert "224 rows" in right and "1.11 s" in right
    assert names(page)[0] == "lion-face"  # the grid keeps the compressed ranking
    moves = page.locator(".versus > div:last-child .moved").all_text_contents()
    assert moves[:6] == ["▲ 3", "=", "=", "▼ 3", "=", "="]


def test_a_ranking_needs_a_query_and_candidates(opened, server):
    page = opened()
    page.get_by_role("button", name="Rank").click()
    page.get_by_text("Type a query first").wait_for()
    page.keyboard.type("a fox")
    page.keyboard.press("Enter")
    page.get_by_text("Add candidates first").wait_for()
    assert server.bodies == []


def test_the_shipped_model_ranks_the_example(browser, watch):
    reranker = Reranker.from_pretrained("tiny", device="cpu")
    pictures = [EXAMPLE / f"{name}.png" for name in example_pictures()]
    settings = Settings(keys=Keys.of(["a-long-enough-key"]), deadline=None)
    service = RerankService(lambda: reranker)
    with serving(lambda server: create_app(service, settings)) as server:
        page = browser.new_page()
        watch.follow(page)
        page.goto(server.url)
        page.set_default_timeout(60_000)
        page.get_by_label("This server asks for an API key").fill("a-long-enough-key")
        page.keyboard.press("Enter")
        until(page, "#facts", "tinycpu")
        for mode in ("fast", "reason"):
            expected = reranker.rank("a lion", pictures, mode=mode)
            choose(page, mode)
            with page.expect_response("**/v1/rerank"):
                page.get_by_role("button", name="a lion").click()
            page.wait_for_selector(".card.is-answer")
            assert names(page) == [pictures[row.index].stem for row in expected]
            scores = page.locator("#cards .score strong").all_text_contents()
            assert scores == [f"{row.score:.3f}" for row in expected]
            marked = page.locator(".is-inspected").evaluate_all("all => all.map((one) => one.id)")
            assert sorted(marked) == sorted(f"c{index + 1}" for index in expected.inspected)
            shown = "".join(page.locator("#steps").inner_text().split())
            said = re.sub(r"inspect \[(\d+)\]", r"inspects\1", expected.reasoning)
            assert shown == "".join(re.sub(r"\[(\d+)\]", r"\1", said).split())
        page.context.close()
    assert watch.complaints == [] and watch.hosts == {server.url.split("/")[2]}


def example_pictures() -> list[str]:
    """Names of the built-in example's pictures, in the order in which the page sends them."""
    script = (EXAMPLE.parent / "examples.js").read_text()
    return re.findall(r'"([a-z-]+)"', script.split("];")[0])
