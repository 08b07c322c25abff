"""A rerank server for tests: the HTTP application in this process, with or without a model."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import httpx
from fastapi import FastAPI
from PIL import Image

from retrv_r1 import Reranker
from retrv_r1.rerank.events import Inspection, Reasoning
from retrv_r1.serve.app import create_app
from retrv_r1.serve.calls import RankCall
from retrv_r1.serve.service import Health, RerankService
from retrv_r1.serve.settings import Settings
from retrv_r1.types import Bill, RankedItem, RankedResults, TokenCounts


@cache
def tiny() -> Reranker:
    """The shipped checkpoint, loaded once."""
    return Reranker.from_pretrained("tiny", device="cpu")


class OpenService(RerankService):
    """A service whose reranker stays open at the end, because other tests go on with it."""

    async def drain(self, timeout: float) -> None:
        self._state = "draining"


class ServiceDouble:
    """A service without a model: the longer a text, the better; pictures come last.

    Args:
        failure: raised by every call.
        pause: awaited in every call, after the first event of a stream.
        threshold: what the checkpoint says of ``mode="auto"``.
    """

    def __init__(
        self,
        failure: Exception | None = None,
        pause: Callable[[], Any] | None = None,
        threshold: float | None = None,
    ) -> None:
        self.failure, self.pause = failure, pause
        self.calls: list[RankCall] = []
        self.cancelled = self.drained = 0
        self.none: float | None = 0.25
        self.state: Any = "ready"
        self.reranker: Any = tiny_shape(threshold)

    async def start(self) -> None:
        pass

    async def rank(self, call: RankCall) -> RankedResults:
        self.calls.append(call)
        try:
            if self.failure is not None:
                raise self.failure
            if self.pause is not None:
                await self.pause()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return replace(results_of(call), none_of_these=self.none)

    async def stream(self, call: RankCall) -> AsyncIterator[Any]:
        if self.failure is None:
            yield Reasoning("ideal: ")
            yield Inspection(1)
        yield await self.rank(call)

    async def health(self) -> Health:
        return Health(self.state)

    async def drain(self, timeout: float) -> None:
        self.drained += 1


def tiny_shape(threshold: float | None) -> Any:
    """What the server reads of a reranker, without its weights."""
    from types import SimpleNamespace as Space

    images = Space(do_resize=False, resample=None)
    return Space(
        model=Space(config=Space(auto_threshold=threshold), dtype="torch.float32", device="cpu"),
        processor=Space(max_text_tokens=4096, image_processor=images),
        window=50,
        stats=lambda: (None, None),
    )


def results_of(call: RankCall) -> RankedResults:
    """The ranking of the double: halves of one, by length of text."""
    order = sorted(
        range(len(call.candidates)), key=lambda i: (-len(call.candidates[i].text or ""), i)
    )
    rows = tuple(
        RankedItem(number, 0.5**place, call.candidates[number], truncated=number == 9)
        for place, number in enumerate(order, 1)
    )
    tokens = TokenCounts(prompt=40, candidates=6, inspected=4, generated=12, cached=8, pictures=3)
    bill = Bill(seconds={"total": 0.5}, tokens=tokens, prompts=1, inspections=1)
    return RankedResults(
        call.query,
        order[0],
        rows[: call.top_n],
        reasoning="ideal: …",
        inspected=(1,),
        mode="fast" if call.mode == "fast" else "reason",
        model="/a/folder/of/the/server",
        bill=bill,
    )


class Server:
    """An application on a loop in a thread of its own; a context manager.

    Args:
        service: ranks; the shipped checkpoint by default.
        options: other arguments of ``create_app``.
    """

    def __init__(
        self, settings: Settings | None = None, service: Any = None, **options: Any
    ) -> None:
        self.service = service or OpenService(tiny())
        self.ready = threading.Event()
        self.app: FastAPI = create_app(
            self.service, settings, on_start=lambda error: self.ready.set(), **options
        )
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._stack = contextlib.AsyncExitStack()

    def __enter__(self) -> Server:
        self._thread.start()
        self.run(self._open())
        assert self.ready.wait(60)
        return self

    def __exit__(self, *error: Any) -> None:
        self.run(self._stack.aclose())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _open(self) -> None:
        await self._stack.enter_async_context(self.app.router.lifespan_context(self.app))
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self.client = await self._stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60)
        )

    def run(self, work: Any) -> Any:
        """The result of a coroutine on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(120)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.run(self.client.get(path, **options))

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        """Posts JSON, or bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Content-Type": "application/json"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        return self.run(self.client.post(path, content=content, headers=given))


def events_of(text: str) -> list[tuple[str, Any]]:
    """Names and data of server-sent events; comments have the name ``:``."""
    found = []
    for block in text.split("\n\n")[:-1]:
        if block.startswith(":"):
            found.append((":", block[1:].strip()))
            continue
        name, data = block.split("\n")
        assert name.startswith("event: ") and data.startswith("data: ")
        found.append((name[7:], json.loads(data[6:])))
    return found


def png(colour: str, size: int = 32) -> str:
    """A picture of one colour as a data URI."""
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


class HangingUp:
    """Calls an application as a server does, for a client that hangs up.

    Args:
        body: what the client sends before.
    """

    def __init__(self, path: str, body: Any) -> None:
        self.gone = asyncio.Event()
        self.sent: list[dict[str, Any]] = []
        self.first = asyncio.Event()
        self._body = json.dumps(body).encode()
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1),
            "server": ("test", 80),
        }

    async def receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        if message.get("body"):
            self.first.set()

    @property
    def status(self) -> int:
        """Status of the response."""
        return self.sent[0]["status"]


@contextlib.contextmanager
def double(settings: Settings | None = None, **options: Any) -> Iterator[Server]:
    """A server of a :class:`ServiceDouble`; ``options`` are those of the double."""
    with Server(settings, ServiceDouble(**options)) as server:
        yield server
