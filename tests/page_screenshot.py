"""Takes the picture of the page for the documentation: python tests/page_screenshot.py URL FILE."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from page_doubles import FLAGS, browser_path, choose
from PIL import Image
from playwright.sync_api import sync_playwright

WIDTH, HEIGHT = 1180, 1215
"""Pixels of the page that are shown: all but the bill."""


def take(url: str, query: str = "a green apple") -> Image.Image:
    """The page after it has ranked one of its examples, with reasoning."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=FLAGS)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(120_000)
        page.goto(url)
        page.locator("#facts span").first.wait_for()
        choose(page, "reason")
        page.get_by_role("button", name=query).click()
        page.wait_for_selector(".card.is-answer")
        page.mouse.move(0, 0)
        page.evaluate("document.activeElement.blur()")
        page.wait_for_timeout(2000)  # until the cards have moved to their places
        taken = page.screenshot()
        browser.close()
    return Image.open(io.BytesIO(taken)).convert("RGB")


if __name__ == "__main__":
    address, target = sys.argv[1:]
    picture = take(address).quantize(255, dither=Image.Dither.NONE)
    picture.save(Path(target), optimize=True)
