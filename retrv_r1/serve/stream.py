"""Answers with server-sent events: reasoning as it is written, the ranking last."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack
from typing import Any, TypeAlias

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from retrv_r1.rerank.events import Draft, Event, Inspection, Reasoning
from retrv_r1.serve.errors import ApiError
from retrv_r1.serve.trace import trace_of
from retrv_r1.serve.watching import watched
from retrv_r1.types import RankedResults

Happening: TypeAlias = Event | RankedResults

FIRST_WAIT = 0.25
"""Seconds in which an error is still answered with its status instead of an event."""

KEEP_ALIVE = b": keep-alive\n\n"


def encode_event(name: str, data: Any) -> bytes:
    """An event; ``data`` is a JSON value, in one line."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f"event: {name}\ndata: {text}\n\n".encode("utf-8", "replace")


class Happenings:
    """The events of a ranking, whose first one may be waited for before the response starts."""

    def __init__(self, events: AsyncGenerator[Happening, None]) -> None:
        self._events = events
        self._next: asyncio.Task[Happening] | None = None

    async def begin(self) -> None:
        """Waits a moment for the first event, so that an early error is raised here."""
        task = self._ask()
        try:
            await asyncio.wait({task}, timeout=FIRST_WAIT)
            if task.done() and (error := task.exception()) is not None:
                raise error
        except BaseException:
            await self.close()
            raise

    async def next(self, seconds: float) -> Happening | None:
        """The next event; None if there is none within ``seconds``.

        Raises:
            StopAsyncIteration: there are no more.
        """
        task = self._ask()
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            return None
        self._next = None
        return task.result()

    async def close(self) -> None:
        """Cancels the ranking, and returns when it holds nothing any more."""
        task, self._next = self._next, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._events.aclose()

    def _ask(self) -> asyncio.Task[Happening]:
        if self._next is None:
            self._next = asyncio.ensure_future(anext(self._events))
        return self._next


class EventStream(Response):
    """The events of a ranking.

    Args:
        happenings: what happens.
        body_of: makes the response's body of the results.
        draft_of: makes that of results that are not the last.
        error_of: makes an error of an exception, and its body.
        keep_alive: seconds of silence after which a comment is sent.
        seconds: seconds that are left until the deadline; None for no deadline.
        closing: what is released at the end.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        happenings: Happenings,
        body_of: Callable[[RankedResults], Any],
        draft_of: Callable[[RankedResults], Any],
        error_of: Callable[[Exception], tuple[ApiError, Any]],
        *,
        keep_alive: float,
        seconds: float | None,
        closing: ExitStack,
    ) -> None:
        self.status_code, self.background = 200, None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._happenings, self._error_of = happenings, error_of
        self._body_of, self._draft_of = body_of, draft_of
        self._keep_alive, self._seconds, self._closing = keep_alive, seconds, closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trace = trace_of(scope)
        with self._closing:
            try:
                await send(
                    {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                )
                await watched(receive, self._send_all(send))
            except Exception as error:
                told, body = self._error_of(error)
                trace.status, trace.code = told.status, told.code
                if told.status != 499:
                    await _send(send, encode_event("error", body))
            finally:
                await self._happenings.close()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(self, send: Send) -> None:
        async with asyncio.timeout(self._seconds):
            while True:
                try:
                    event = await self._happenings.next(self._keep_alive)
                except StopAsyncIteration:
                    return
                await _send(send, self._encode(event))

    def _encode(self, event: Happening | None) -> bytes:
        if event is None:
            return KEEP_ALIVE
        if isinstance(event, Reasoning):
            return encode_event("reasoning", {"text": event.text, "vote": event.vote})
        if isinstance(event, Inspection):
            return encode_event("inspection", {"index": event.index, "vote": event.vote})
        if isinstance(event, Draft):
            return encode_event("draft", self._draft_of(event.results))
        return encode_event("ranking", self._body_of(event))


async def _send(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
