"""Sends requests to an application in this process, byte for byte, and judges the answers."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import dataclass, field
from typing import Any

from bench.fuzz.bodies import Sent

ALLOWED = frozenset({200, 304, 400, 401, 404, 405, 408, 413, 415, 421, 422, 429, 499, 503, 504})
FORBIDDEN = (b"Traceback", b'File "', b"retrv_r1/", b"site-packages")
MOST_SECONDS = 60.0


@dataclass
class Got:
    """An answer."""

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    ended: bool = False


async def exchange(app: Any, sent: Sent) -> Got:
    """The answer of an ASGI application to a request."""
    got, chunks = Got(), list(sent.chunks) or [b""]
    given = 0
    forever = asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal given
        if sent.hang_up is not None and given >= sent.hang_up:
            await asyncio.sleep(0)
            return {"type": "http.disconnect"}
        if given < len(chunks):
            given += 1
            more = given < len(chunks)
            return {"type": "http.request", "body": chunks[given - 1], "more_body": more}
        await forever.wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            got.status, got.headers = message["status"], dict(message["headers"])
        else:
            got.body += message.get("body", b"")
            got.ended = not message.get("more_body", False)

    scope = {
        **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1"},
        **{"method": sent.method, "scheme": "http", "path": sent.path, "root_path": ""},
        **{"raw_path": sent.path.encode(), "query_string": b"", "headers": list(sent.headers)},
        **{"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {}},
    }
    async with asyncio.timeout(MOST_SECONDS):
        await app(scope, receive, send)
    return got


def faults(sent: Sent, got: Got) -> list[str]:
    """What is wrong with an answer; nothing, it is hoped."""
    if sent.hang_up is not None and not got.status:
        return []
    found = [] if got.status in ALLOWED else [f"status {got.status}"]
    found += [f"the body has {text!r}" for text in FORBIDDEN if text in got.body]
    headers = {name.lower(): value for name, value in got.headers.items()}
    if b"x-request-id" not in headers:
        found.append("no request id")
    if not got.ended:
        found.append("the answer does not end")
    if sent.method != "POST" or sent.hang_up is not None:
        return found
    kind = headers.get(b"content-type", b"")
    try:
        if kind.startswith(b"text/event-stream"):
            found += _stream_faults(got.body)
        elif kind.startswith(b"application/json"):
            found += _json_faults(got.status, json.loads(got.body))
        elif got.status == 200:
            found.append(f"content type {kind!r}")
    except ValueError as error:
        found.append(f"the body is not JSON: {error}")
    return found


def _stream_faults(body: bytes) -> list[str]:
    events = [part for part in body.split(b"\n\n") if part.startswith(b"event:")]
    if not events or not events[-1].startswith((b"event: ranking", b"event: error")):
        return ["the last event is neither ranking nor error"]
    data = json.loads(events[-1].split(b"data: ", 1)[1])
    status = 200 if events[-1].startswith(b"event: ranking") else 400
    return _json_faults(status, data)


def _json_faults(status: int, body: Any) -> list[str]:
    if status != 200:
        named = isinstance(body, dict) and ({"error", "message", "detail"} & set(body))
        return [] if named else ["an error without a message"]
    rows = body if isinstance(body, list) else body.get("results", body.get("data"))
    if not isinstance(rows, list) or not rows:
        return ["no results"]
    scores = [row.get("relevance_score", row.get("score")) for row in rows]
    if not all(isinstance(score, float | int) and math.isfinite(score) for score in scores):
        return ["a score is no number"]
    places = [row["index"] for row in rows if "index" in row]
    return [] if len(set(places)) == len(places) else ["a document is there twice"]
