"""A rerank server with prepared answers, and a browser that watches what a page does."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from retrv_r1.serve import page as page_module

EXAMPLE = Path(page_module.__file__).parent / "page" / "example"
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
CHAIN = "Wanted: a lion. Close: [5] [8].\ninspect [5]: a mane. inspect [8]: stripes. So [5]"
PHASES = {"features": 0.08, "compression": 0.02, "prefill": 0.05, "decode": 0.3, "total": 0.5}


def ranking(count: int, *, first: int = 0, mode: str = "fast", **fields: Any) -> dict[str, Any]:
    """A response that puts one candidate first and leaves the others in order."""
    order = [first, *(index for index in range(count) if index != first)]
    rows = 3 * count
    tokens = {"prompt": 20 + rows, "candidates": rows, "inspected": 0, "generated": 0, "cached": 7}
    own = {"mode": mode, "answer": first, "reasoning": "", "inspected": [], "none_of_these": 0.125}
    bill = {"seconds": PHASES, "tokens": tokens, "prompts": 1, "remembered": 2, "encoded": 10}
    return {
        "model": "double",
        "results": [
            {"index": index, "relevance_score": 0.75 / (1 + place)}
            for place, index in enumerate(order)
        ],
        "retrv": own | {"tokens": tokens, "timings": PHASES, "bill": bill} | fields,
    }


def error(status: int, message: str, **headers: str) -> Response:
    """An error as the server gives it."""
    inner = {"message": message, "type": "invalid_request_error", "param": None, "code": "x"}
    body = {"error": inner, "message": message, "detail": message, "object": "error", "id": "1"}
    return JSONResponse(body, status, headers)


class Wait:
    """A place in a stream at which the server waits until the test goes on."""

    def __init__(self) -> None:
        self._gone = threading.Event()

    def go(self) -> None:
        self._gone.set()

    async def reached(self) -> None:
        while not self._gone.is_set():
            await anyio.sleep(0.01)


@dataclass
class Server:
    """The server: it records requests, and answers each with the next of ``answers``.

    Args:
        url: address of the page.
        answers: a response, or the events of a stream: pairs of name and value, and waits.
        bodies, keys: bodies and keys of the requests so far.
        cancelled: set when a client has hung up in a stream.
    """

    url: str
    answers: list[Response | list[tuple[str, Any] | Wait]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def forget(self) -> None:
        """Makes the server as it was at first."""
        self.answers, self.bodies, self.keys = [], [], []
        self.cancelled = threading.Event()

    async def rerank(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        self.keys.append(request.headers.get("authorization", ""))
        answer = self.answers.pop(0)
        if isinstance(answer, Response):
            return answer
        return StreamingResponse(self._events(answer), media_type="text/event-stream")

    async def _events(self, events: list[tuple[str, Any] | Wait]) -> AsyncIterator[str]:
        done = False
        try:
            for event in events:
                if isinstance(event, Wait):
                    await event.reached()
                else:
                    yield f"event: {event[0]}\ndata: {json.dumps(event[1])}\n\n: pause\n\n"
            done = True
        finally:
            if not done:
                self.cancelled.set()


@contextlib.contextmanager
def serving(app_of: Callable[[Server], Any]) -> Iterator[Server]:
    """Serves an application in a thread, at a port that is free."""
    server = Server("")
    config = uvicorn.Config(app_of(server), port=0, log_level="error", lifespan="on")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while not running.started:
        assert thread.is_alive() and time.monotonic() < until, "the server did not start"
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    server.url = f"http://127.0.0.1:{port}/"
    yield server
    running.should_exit = True
    thread.join(timeout=30)
    assert not thread.is_alive(), "the server did not end"


def double(server: Server) -> FastAPI:
    """The application of the prepared server."""
    app = FastAPI()
    page_module.mount_page(app)
    app.add_api_route("/v1/rerank", server.rerank, methods=["POST"], response_model=None)
    app.add_api_route("/health", lambda: {"status": "ready"})
    app.add_api_route("/info", lambda: {"model_id": "double", "device": "cpu"})
    return app


def browser_path() -> str:
    """A Chromium of this machine; skips the test where there is none."""
    pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    pytest.skip(f"there is no browser: none of {', '.join(BROWSERS)}")


@dataclass
class Watch:
    """What must not happen while a page is used.

    Args:
        hosts: hosts that requests went to.
        complaints: errors of scripts, of the console, and of the policy.
    """

    hosts: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)

    def follow(self, page: Any) -> None:
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._console)
        page.context.route("**/*", self._route)

    def _route(self, route: Any) -> None:
        self.hosts.add(route.request.url.split("/")[2])
        route.continue_()

    def _console(self, message: Any) -> None:
        # The browser itself reports an answer that is an error, which some tests want.
        if message.type in ("error", "warning") and "status of" not in message.text:
            self.complaints.append(message.text)


def choose(page: Any, mode: str) -> None:
    page.locator(f"input[value={mode}] + span").click()


def until(page: Any, selector: str, text: str) -> None:
    """Waits until an element has exactly this text."""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_text(text, timeout=20_000)


def names(page: Any) -> list[str]:
    return page.eval_on_selector_all("#cards .card", "cards => cards.map((card) => card.title)")
