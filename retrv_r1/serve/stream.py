"""Answers with server-sent events: reasoning as it is written, the ranking last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack
from typing import Any, TypeAlias

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from retrv_r1.rerank.events import Draft, Event, Inspection, Reasoning
from retrv_r1.serve.errors import ApiError
from retrv_r1.serve.sending import encode, encode_answer, send_pieces
from retrv_r1.serve.trace import trace_of
from retrv_r1.serve.watching import watched
from retrv_r1.types import RankedResults

Happening: TypeAlias = Event | RankedResults

FIRST_WAIT = 0.25
"""Seconds in which an error is still answered with its status instead of an event."""

KEEP_ALIVE = b": keep-alive\n\n"


def to_event(name: str, data: bytes) -> bytes:
    """An event; ``data`` is JSON in one line."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)


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
                await watched(receive, self._send_all(send, trace.body_bytes))
            except Exception as error:
                told, body = self._error_of(error)
                trace.status, trace.code = told.status, told.code
                if told.status != 499:
                    await send_pieces(send, to_event("error", encode(body)), more=True)
            finally:
                await self._happenings.close()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(self, send: Send, asked: int) -> None:
        """Sends each event whole: the deadline may pass between two, not within one."""
        now = asyncio.get_running_loop().time()
        until = None if self._seconds is None else now + self._seconds
        while True:
            try:
                async with asyncio.timeout_at(until):
                    event = await self._happenings.next(self._keep_alive)
            except StopAsyncIteration:
                return
            if isinstance(event, RankedResults):
                until = None  # it is the last one, and no error may follow
            await send_pieces(send, await self._encode(event, asked), more=True)

    async def _encode(self, event: Happening | None, asked: int) -> bytes:
        """An event's bytes; ``asked`` is the request's."""
        if event is None:
            return KEEP_ALIVE
        if isinstance(event, Reasoning):
            return to_event("reasoning", encode({"text": event.text, "vote": event.vote}))
        if isinstance(event, Inspection):
            return to_event("inspection", encode({"index": event.index, "vote": event.vote}))
        if isinstance(event, Draft):
            draft = self._draft_of(event.results)
            return to_event("draft", await encode_answer(draft, asked))
        return to_event("ranking", await encode_answer(self._body_of(event), asked))
