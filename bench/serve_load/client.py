"""A client that reads what comes byte for byte, so that a stray answer is seen; it may hang up."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import h11

from bench.serve_load.asks import Ask

End: TypeAlias = Literal["answered", "refused", "late", "hung up", "lost", "failed", "wrong"]
"""How a request ended: with its ranking, with 429, with 504, by its client; the last three are
faults: without an answer, with an error of the server, and with an answer that is not its own."""


@dataclass(frozen=True)
class Outcome:
    """How a request ended.

    Args:
        status: status of the answer; 0 without one.
        seconds: from the first byte sent to the last one read.
        first: seconds to the first byte of the answer; 0 without one.
        retry_after: seconds that the server asked for.
        note: what was wrong.
    """

    ask: Ask
    end: End
    status: int = 0
    seconds: float = 0.0
    first: float = 0.0
    retry_after: float = 0.0
    note: str = ""


class HungUp(Exception):
    """This client has hung up, as it was to."""


class Wrong(Exception):
    """What came is not the answer to what was asked."""


class Client:
    """Asks one request after the other, on one connection as long as that lasts.

    Args:
        patience: seconds after which a request counts as lost.
    """

    def __init__(self, host: str, port: int, patience: float) -> None:
        self._address, self._patience = (host, port), patience
        self._http: h11.Connection | None = None
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._status, self._first, self._retry = 0, 0.0, 0.0

    async def ask(self, ask: Ask) -> Outcome:
        """Sends a request and waits for its answer, or hangs up where it says so."""
        began = time.perf_counter()
        self._status, self._first, self._retry = 0, 0.0, 0.0
        end: End
        note = ""
        try:
            async with asyncio.timeout(self._patience):
                end, note = await self._exchange(ask, began)
        except HungUp:
            end = "hung up"
        except Wrong as error:
            end, note = "wrong", str(error)
        except (TimeoutError, OSError, h11.RemoteProtocolError) as error:
            end, note = "lost", f"{type(error).__name__} {error}"
        if end not in ("answered", "refused", "late", "failed"):
            self.close()
        seconds = time.perf_counter() - began
        return Outcome(ask, end, self._status, seconds, self._first, self._retry, note)

    def close(self) -> None:
        """Ends the connection at once, as a client that is killed does."""
        if self._http is not None:
            self._http = None
            self._writer.transport.abort()

    async def _exchange(self, ask: Ask, began: float) -> tuple[End, str]:
        if self._http is None:
            self._reader, self._writer = await asyncio.open_connection(*self._address)
            self._http = h11.Connection(h11.CLIENT)
        http = self._http
        await self._send(http, ask)
        body = await self._read(http, ask, began)
        if http.trailing_data[0]:
            raise Wrong("there is something behind the answer")
        if http.our_state is http.their_state is h11.DONE:
            http.start_next_cycle()
        else:
            self.close()
        if self._status == 200:
            return check(ask, body)
        if self._status == 429 and self._retry > 0:
            return "refused", ""
        if self._status == 504:
            return "late", ""
        return "failed", f"status {self._status}: {body[:200]!r}"

    async def _send(self, http: h11.Connection, ask: Ask) -> None:
        head = h11.Request(
            method="POST",
            target="/v1/rerank",
            headers=[
                ("Host", "localhost"),
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(ask.body))),
                ("X-Request-ID", ask.id),
            ],
        )
        self._writer.write(http.send(head))
        half = len(ask.body) // 2
        self._writer.write(http.send(h11.Data(ask.body[:half])))
        await self._writer.drain()
        if ask.leaves == "body":
            raise HungUp
        self._writer.write(http.send(h11.Data(ask.body[half:])) + http.send(h11.EndOfMessage()))
        await self._writer.drain()

    async def _read(self, http: h11.Connection, ask: Ask, began: float) -> bytes:
        until = asyncio.get_running_loop().time() + ask.patience
        body = bytearray()
        try:
            async with asyncio.timeout_at(until if ask.leaves == "wait" else None):
                while not isinstance(event := await self._event(http), h11.EndOfMessage):
                    if isinstance(event, h11.Response):
                        self._first = time.perf_counter() - began
                        self._begin(ask, event)
                    elif isinstance(event, h11.Data):
                        body += event.data
                        if ask.leaves == "answer":
                            raise HungUp
        except TimeoutError:
            if ask.leaves == "wait":
                raise HungUp from None
            raise
        return bytes(body)

    def _begin(self, ask: Ask, event: h11.Response) -> None:
        headers = {name.decode(): value.decode() for name, value in event.headers}
        self._status = event.status_code
        self._retry = float(headers.get("retry-after", 0))
        if headers.get("x-request-id") != ask.id:
            raise Wrong(f"the answer to {headers.get('x-request-id')}, not to {ask.id}")

    async def _event(self, http: h11.Connection) -> Any:
        while (event := http.next_event()) is h11.NEED_DATA:
            data = await self._reader.read(2**16)
            if not data:
                raise ConnectionResetError("the server has closed the connection")
            http.receive_data(data)
        return event


def check(ask: Ask, body: bytes) -> tuple[End, str]:
    """How a request with status 200 ended: events may end with an error.

    Raises:
        Wrong: the body does not rank the documents of the request.
    """
    if ask.mode == "stream":
        name, answer = last_event(body)
        if name == "error":
            code = answer["error"]["code"]
            return ("late" if code == "deadline_exceeded" else "failed"), f"event {code}"
    else:
        answer = json.loads(body)
    rows = answer["results"]
    if sorted(row["index"] for row in rows) != list(range(ask.documents)):
        raise Wrong(f"{len(rows)} results of {ask.documents} documents")
    if any(row["id"] != f"{ask.id}/{row['index']}" for row in rows):
        raise Wrong("documents of another request")
    scores = [row["relevance_score"] for row in rows]
    if scores != sorted(scores, reverse=True):
        raise Wrong("scores that rise down the ranking")
    return "answered", ""


def last_event(events: bytes) -> tuple[str, Any]:
    """Name and data of the last event, which alone is a ranking or an error."""
    blocks = [one for one in events.decode().split("\n\n") if one and not one.startswith(":")]
    names = [block.partition("\n")[0].removeprefix("event: ") for block in blocks]
    ends = [name for name in names if name in ("ranking", "error")]
    if len(ends) != 1 or names[-1] != ends[0]:
        raise Wrong(f"events that end with {names[-3:]}")
    return names[-1], json.loads(blocks[-1].partition("\ndata: ")[2])
