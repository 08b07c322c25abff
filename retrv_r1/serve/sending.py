"""Encodes an answer, and sends it in pieces, each when the client has taken those before it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

PIECE = 2**16
"""Bytes of a piece. A server buffers about two; of an answer in one piece it would buffer all."""

LARGE = 2**20
"""Bytes of a request from which its answer is encoded in a thread: 4 MB of texts take 26 ms."""

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def encode(content: Any) -> bytes:
    """The JSON of an answer; a text with half a surrogate pair gets a question mark."""
    return _ENCODER.encode(content).encode("utf-8", "replace")


async def encode_answer(content: Any, asked: int) -> bytes:
    """The JSON of an answer, made beside the event loop where it may be large.

    Args:
        asked: bytes of the request; an answer repeats its texts and pictures.
    """
    return await encode_beside(content) if asked >= LARGE else encode(content)


async def encode_beside(content: Any) -> bytes:
    """The JSON of a large answer, made while other requests go on.

    Value by value: a thread that encodes all at once would keep the others waiting until its end.
    """
    return await run_in_threadpool(
        lambda: b"".join(one.encode("utf-8", "replace") for one in _ENCODER.iterencode(content))
    )


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
            await send_pieces(send, body, more=False)


async def send_pieces(send: Send, body: bytes, *, more: bool) -> None:
    """Sends bytes of a body.

    Args:
        more: whether others follow.
    """
    for first in range(0, max(len(body), 1), PIECE):
        piece, left = body[first : first + PIECE], first + PIECE < len(body)
        await send({"type": "http.response.body", "body": piece, "more_body": left or more})
