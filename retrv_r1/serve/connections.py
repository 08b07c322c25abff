"""Connections with time limits: for headers that do not come, and answers that nobody takes."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from retrv_r1.serve.limits import Limits
from retrv_r1.serve.logs import LOGGER

log = logging.getLogger(LOGGER)


def limited(limits: Limits) -> type[asyncio.Protocol]:
    """Uvicorn's HTTP protocol with the limits ``header_seconds`` and ``write_seconds``."""

    class Limited(LimitedConnection):
        """Has the limits of one server."""

        header_seconds, write_seconds = limits.header_seconds, limits.write_seconds

    return Limited


class LimitedConnection(H11Protocol):
    """A connection that is cut off when its client keeps the server waiting.

    Uvicorn waits for ever for headers, and for a client to read: each holds a connection, and an
    answer its memory. A body has a limit of its own (``body_seconds``).
    """

    header_seconds: float
    write_seconds: float
    _headers: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Gives the client its time for headers."""
        super().connection_made(transport)
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        """Ends the time for headers when they are there, or begins that of the next ones."""
        if not self.transport.get_write_buffer_size():
            self._expect_reading(False)  # who asks again has read the answer before
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_headers()
        elif self._headers is None:
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits for nothing any more."""
        self._stop_headers()
        self._expect_reading(False)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client has some of an answer before it; now it has to take that."""
        super().pause_writing()
        self._expect_reading(True)

    def resume_writing(self) -> None:
        """The client has taken it."""
        self._expect_reading(False)
        super().resume_writing()

    def on_response_complete(self) -> None:
        """The end of an answer has its time too, also where the connection is to be closed."""
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._expect_reading(True)

    def _expect_headers(self) -> None:
        self._headers = self.loop.call_later(self.header_seconds, self.transport.abort)

    def _stop_headers(self) -> None:
        if self._headers is not None:
            self._headers.cancel()
            self._headers = None

    def _expect_reading(self, expected: bool) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        if expected:
            self._unread = self.loop.call_later(self.write_seconds, self._cut_off)

    def _cut_off(self) -> None:
        if self.transport.get_write_buffer_size():
            log.warning("a client did not read its answer; its connection was closed")
            self.transport.abort()
