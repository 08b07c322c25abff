"""A web server on loopback that stands for public addresses, for tests of remote pictures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpcore

PUBLIC, ALSO_PUBLIC = "93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"
Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Internet(httpcore.AsyncNetworkBackend):
    """Name server and connections; all that is asked is recorded."""

    port: int
    names: dict[str, list[str]]
    looked_up: list[str] = field(default_factory=list)
    connected: list[tuple[str, int]] = field(default_factory=list)
    unreachable: set[str] = field(default_factory=set)

    async def resolve(self, host: str, port: int) -> list[str]:
        self.looked_up.append(host)
        if host not in self.names:
            raise OSError("no such host")
        return self.names[host]

    async def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        self.connected.append((host, port))
        if host in self.unreachable:
            raise httpcore.ConnectError
        return await httpcore.AnyIOBackend().connect_tcp(
            "127.0.0.1", self.port, timeout, local_address, socket_options
        )


def reply(status: str, body: bytes = b"", **headers: str) -> Answer:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    return answer


@asynccontextmanager
async def internet(answer: Answer, **names: list[str]) -> AsyncIterator[tuple[Internet, list]]:
    """A web server that gives one answer, under host names; ``a__b`` stands for ``a.b``."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                requests.append(await reader.readuntil(b"\r\n\r\n"))
                await answer(requests[-1], writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    known = {name.replace("__", "."): found for name, found in names.items()}
    known = known or {"pictures.example": [PUBLIC]}
    try:
        yield Internet(server.sockets[0].getsockname()[1], known), requests
    finally:
        server.close()
