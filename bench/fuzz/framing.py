"""Broken HTTP over a real socket: wrong lengths, half requests, garbage, hang-ups."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from bench.fuzz.bodies import mutated

MOST_SECONDS = 20.0
BODY = json.dumps(
    {"query": "a red apple", "documents": ["an apple", "a car"], "retrv": {"mode": "fast"}}
).encode()


@asynccontextmanager
async def listening(app: Any, **options: Any) -> AsyncIterator[int]:
    """The port on which uvicorn serves an application on this loop; options are uvicorn's."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, **options))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


def frame(chance: random.Random) -> bytes:
    """A request whose framing is wrong in some way."""
    head = b"POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    length = b"Content-Length: %d\r\n\r\n" % len(BODY)
    whole = head + length + BODY
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
    kinds = (
        whole,
        mutated(whole, chance),
        mutated(head + length, chance) + BODY,
        whole[: chance.randrange(len(whole))],
        head + b"Content-Length: %d\r\n\r\n" % (len(BODY) + 50) + BODY,
        head + b"Content-Length: %d\r\n\r\n" % (len(BODY) // 2) + BODY,
        head + b"Content-Length: -5\r\n\r\n" + BODY,
        head + b"Content-Length: 99999999999999999999\r\n\r\n" + BODY,
        head + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + BODY,
        head + b"Transfer-Encoding: chunked\r\n" + length + BODY,
        chunked + b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n",
        chunked + b"fffffffffffffff\r\n" + BODY,
        chunked + b"zz\r\n" + BODY,
        mutated(chunked + b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n", chance),
        head + b"X: " + b"a" * 100_000 + b"\r\n" + length + BODY,
        head + b"X: a\r\n" * 2000 + length + BODY,
        head + b"Expect: 100-continue\r\n" + length + BODY,
        head + b"Upgrade: websocket\r\nConnection: Upgrade\r\n" + length + BODY,
        head + b" folded: a\r\n" + length + BODY,
        head.replace(b"\r\n", b"\n") + length + BODY,
        head.replace(b"1.1", b"9.9") + length + BODY,
        head.replace(b"Host: localhost\r\n", b"") + length + BODY,
        chance.randbytes(500),
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(100),
        b"GET / HTTP/2.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET http://169.254.169.254/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        whole * 3,
        b"",
    )
    return chance.choice(kinds)


async def throw(port: int, chance: random.Random) -> str | None:
    """Sends one such request; the fault of its answer, if there is one."""
    data, cut = frame(chance), chance.random() < 0.3
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(MOST_SECONDS):
            for start in range(0, len(data), size := chance.choice((10**9, 1000, 50))):
                writer.write(data[start : start + size])
                await writer.drain()
                if cut and chance.random() < 0.2:
                    return None
            if writer.can_write_eof():
                writer.write_eof()
            answer = await reader.read()
    except ConnectionError:
        return None  # a server may hang up on nonsense
    except TimeoutError:
        return f"no end within {MOST_SECONDS:g} s of {data[:80]!r}"
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    statuses = [line.split()[1] for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    wrong = [status for status in statuses if status >= b"500"]
    return f"status {wrong[0].decode()} for {data[:200]!r}" if wrong else None


async def still_answers(port: int) -> bool:
    """Whether a sound request gets its answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n")
    writer.write(b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)
    answer = await reader.read()
    writer.close()
    return answer.startswith(b"HTTP/1.1 200")
