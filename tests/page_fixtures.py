"""Fixtures for tests of the page: a browser, a server with prepared answers, and the page in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from page_doubles import FLAGS, Server, Watch, browser_path, double, serving, until


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with serving(double) as server:
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
