"""Sends an answer in pieces, each when the client has taken those before it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

PIECE = 2**16
"""Bytes of a piece. A server buffers about two; of an answer in one piece it would buffer all."""


class Whole(Response):
    """An answer that is ready.

    Args:
        closing: what the request holds; it is released when the client has taken the answer, so
            that those who do not read count as requests, and their memory with them.
    """

    def __init__(
        self, body: bytes, status: int, headers: Mapping[str, str], closing: ExitStack | None = None
    ) -> None:
        super().__init__(body, status, dict(headers), "application/json")
        self._closing = closing or ExitStack()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = bytes(self.body)
        with self._closing:
            start = {"type": "http.response.start", "status": self.status_code}
            await send({**start, "headers": self.raw_headers})
            for first in range(0, max(len(body), 1), PIECE):
                piece, more = body[first : first + PIECE], first + PIECE < len(body)
                await send({"type": "http.response.body", "body": piece, "more_body": more})
