"""Slow clients: whoever sends or reads slowly waits alone, and is cut off in the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from serve_app import ServiceDouble, events_of

from bench.fuzz import framing
from retrv_r1.serve.app import create_app
from retrv_r1.serve.connections import limited
from retrv_r1.serve.limits import Limits
from retrv_r1.serve.settings import Settings

ASK = {"query": "apple", "documents": ["pear", "red apple"]}
LARGE = {**ASK, "documents": ["x" * 900_000] * 10}
"""Its answer repeats its texts, and is more than the buffers of a connection hold."""

LIMITS = Limits(header_seconds=0.6, write_seconds=0.6, body_seconds=60.0)


@contextlib.asynccontextmanager
async def listening(limits: Limits = LIMITS) -> AsyncIterator[int]:
    """The port of a server on this loop, with a service that answers at once."""
    app = create_app(ServiceDouble(), Settings(limits=limits, drain=1.0))
    options = {"http": limited(limits), "timeout_graceful_shutdown": 1}
    async with framing.listening(app, **options) as port:
        yield port


def head(body: bytes) -> bytes:
    lines = ("POST /v1/rerank HTTP/1.1", "Host: localhost", "Content-Type: application/json")
    return "\r\n".join((*lines, f"Content-Length: {len(body)}", "\r\n")).encode()


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection whose client holds little of what it has not read."""
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    own.setblocking(False)
    await asyncio.get_running_loop().sock_connect(own, ("127.0.0.1", port))
    return await asyncio.open_connection(sock=own, limit=4096)


async def status_of_another(port: int) -> int:
    async with httpx.AsyncClient(timeout=10) as client:
        return (await client.post(f"http://127.0.0.1:{port}/v1/rerank", json=ASK)).status_code


@pytest.mark.parametrize("sent", [b"", b"POST /v1/rerank HT", head(b"{}")[:-2]])
def test_headers_that_do_not_come_end_the_connection(sent):
    async def check() -> float:
        async with listening() as port:
            reader, writer = await connect(port)
            began = time.monotonic()
            writer.write(sent)
            assert await status_of_another(port) == 200
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
            return time.monotonic() - began

    assert 0.5 < asyncio.run(check()) < 30


def test_the_next_headers_of_a_connection_have_their_time_too():
    async def check() -> None:
        async with listening() as port:
            reader, writer = await connect(port)
            body = json.dumps(ASK).encode()
            writer.write(head(body) + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200")
            await asyncio.sleep(1)  # an idle connection stays open
            writer.write(head(body)[:20])
            async with asyncio.timeout(5):
                with contextlib.suppress(ConnectionResetError):
                    while await reader.read(4096):
                        pass
            writer.close()

    asyncio.run(check())


def test_a_body_byte_by_byte_is_read_while_others_are_answered():
    async def check() -> None:
        async with listening() as port:
            reader, writer = await connect(port)
            body = json.dumps(ASK).encode()
            writer.write(head(body))
            for place in range(len(body)):
                writer.write(body[place : place + 1])
                await writer.drain()
                await asyncio.sleep(0.02)  # more than header_seconds in all
                if place % 20 == 0:
                    assert await status_of_another(port) == 200
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            writer.close()

    asyncio.run(check())


def test_a_body_that_is_too_slow_gives_its_place_back():
    limits = Limits(body_seconds=2.0, max_requests=1)

    async def check() -> tuple[bytes, list[int]]:
        async with listening(limits) as port:
            reader, writer = await connect(port)
            writer.write(head(b"x" * 1000) + b"{")
            await writer.drain()
            await asyncio.sleep(0.1)
            meanwhile = await status_of_another(port)
            answer = await reader.readuntil(b"\r\n\r\n")
            writer.close()
            return answer, [meanwhile, await status_of_another(port)]

    answer, others = asyncio.run(check())
    assert answer.startswith(b"HTTP/1.1 408") and others == [429, 200]


@pytest.mark.parametrize("stream", [False, True])
def test_who_never_reads_keeps_the_place_until_cut_off(stream):
    limits = Limits(write_seconds=3.0, max_requests=1)

    async def check() -> int:
        async with listening(limits) as port:
            reader, writer = await connect(port)
            body = json.dumps({**LARGE, "stream": stream}).encode()
            writer.write(head(body) + body)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            meanwhile = await status_of_another(port)
            async with asyncio.timeout(30):
                while await status_of_another(port) != 200:
                    await asyncio.sleep(0.2)
            writer.transport.abort()
            return meanwhile

    assert asyncio.run(check()) == 429, "its answer is held until then, so it counts"


def test_ten_bytes_at_a_time_get_all_events():
    async def check() -> bytes:
        async with listening() as port:
            reader, writer = await connect(port)
            body = json.dumps({**ASK, "stream": True}).encode()
            writer.write(head(body).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + body)
            read, others = b"", 0
            while piece := await reader.read(10):
                read += piece
                await asyncio.sleep(0.01)
                if len(read) % 500 < 10:
                    others += await status_of_another(port) == 200
            assert others
            writer.close()
            return read

    read = asyncio.run(check())
    start, _, chunks = read.partition(b"\r\n\r\n")
    assert start.startswith(b"HTTP/1.1 200") and chunks.endswith(b"0\r\n\r\n")
    names = [name for name, _ in events_of(_unchunked(chunks))]
    assert names == ["reasoning", "inspection", "ranking"]


def test_a_large_answer_that_is_read_slowly_but_steadily_is_whole():
    async def check() -> int:
        async with listening() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            body = json.dumps(LARGE).encode()
            writer.write(head(body) + body)
            start = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = left = int(start.partition("content-length: ")[2].split()[0])
            while left:
                left -= len(await reader.read(2**16))
                await asyncio.sleep(0.001)
            writer.close()
            return length

    assert asyncio.run(check()) > 9_000_000


def _unchunked(body: bytes) -> str:
    def pieces() -> Iterator[bytes]:
        rest = body
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            yield rest[: int(size, 16)]
            rest = rest[int(size, 16) + 2 :]

    return b"".join(pieces()).decode()


def test_limits_of_connections_are_given_by_name() -> None:
    made: Any = limited(Limits(header_seconds=3, write_seconds=4))
    assert (made.header_seconds, made.write_seconds) == (3, 4)
    with pytest.raises(ValueError, match="header_seconds"):
        Limits(header_seconds=0)
