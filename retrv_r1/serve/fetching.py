"""Fetches pictures from public web servers and from nowhere else."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx

from retrv_r1.serve.addresses import is_public
from retrv_r1.serve.refused import PictureRefused, over_bytes

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Addresses of a host and a port."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HOST = re.compile(r"[a-z0-9_.-]+|[0-9a-f:.]+")
_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)\.?$", re.IGNORECASE)
_QUAD = re.compile(r"(0|[1-9][0-9]{0,2})(\.(0|[1-9][0-9]{0,2})){3}$")
_HEADERS = (
    (b"User-Agent", b"retrv-r1"),
    (b"Accept", b"image/*"),
    (b"Accept-Encoding", b"identity"),
)
_LOOKUPS = 8


@dataclass(frozen=True)
class FetchPolicy:
    """What is fetched.

    Args:
        max_bytes: most bytes of a picture.
        seconds: seconds for a picture, all redirects together.
        max_redirects: redirects that are followed.
        ports: ports that a URL may name.
        connections: pictures that are fetched at once.
    """

    max_bytes: int = 20 * 2**20
    seconds: float = 10.0
    max_redirects: int = 3
    ports: frozenset[int] = frozenset({80, 443})
    connections: int = 16


class Fetcher:
    """Fetches by http and https; every address is checked where the connection is made.

    A host is looked up once, all its addresses must be public, and the connection goes to one of
    them: a second answer of the name server is never asked for. Proxies, cookies, credentials and
    redirects of the HTTP library are not used.

    Args:
        resolve: looks a host up; the system's resolver when None.
        backend: opens connections to addresses; httpcore's own when None.
    """

    def __init__(
        self,
        policy: FetchPolicy,
        resolve: Resolve | None = None,
        backend: httpcore.AsyncNetworkBackend | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.policy = policy
        # Threads of their own: a name server that hangs must not hold up anything else.
        self._lookups = ThreadPoolExecutor(_LOOKUPS, "retrv-lookup")
        checked = _PublicOnly(resolve or self._resolve, backend or httpcore.AnyIOBackend())
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls or httpx.create_ssl_context(trust_env=False),
            max_connections=policy.connections,
            max_keepalive_connections=policy.connections // 2,
            keepalive_expiry=5.0,
            network_backend=checked,
        )

    async def fetch(self, url: str) -> bytes:
        """The bytes at a URL, whatever their content type says.

        Raises:
            PictureRefused: the URL, its host or a redirect is against the policy, the server
                cannot be reached in time, does not answer 200, or sends too much.
        """
        try:
            async with asyncio.timeout(self.policy.seconds):
                return await self._follow(_parsed(url, self.policy.ports))
        except TimeoutError:
            raise _unreachable(f"did not come within {self.policy.seconds:g} seconds") from None
        except _Forbidden:
            raise _forbidden("its host has no public internet address") from None
        except (httpcore.NetworkError, httpcore.TimeoutException, OSError, UnicodeError):
            # Unicode's, for a label of a host that is empty or too long for the resolver.
            raise _unreachable("cannot be fetched: no connection") from None
        except (httpcore.ProtocolError, httpcore.UnsupportedProtocol, ssl.SSLError):
            raise _unreachable("cannot be fetched: the server does not speak HTTP well") from None

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._pool.aclose()
        self._lookups.shutdown(wait=False, cancel_futures=True)

    async def _follow(self, url: httpx.URL) -> bytes:
        for _ in range(self.policy.max_redirects + 1):
            found = await self._get(url)
            if isinstance(found, bytes):
                return found
            url = _redirected(url, found, self.policy.ports)
        raise _unreachable(f"is behind more than {self.policy.max_redirects} redirects")

    async def _get(self, url: httpx.URL) -> bytes | str:
        """The content, or where the server redirects to."""
        target = httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        )
        async with self._pool.stream("GET", target, headers=list(_HEADERS)) as response:
            headers = {name.lower(): value for name, value in response.headers}
            if response.status in _REDIRECTS and b"location" in headers:
                return headers[b"location"].decode("latin-1")
            if response.status != 200:
                raise _unreachable(f"cannot be fetched: the server answers {response.status}")
            return await self._read(response, headers)

    async def _read(self, response: httpcore.Response, headers: dict[bytes, bytes]) -> bytes:
        most = self.policy.max_bytes
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > most:
            raise over_bytes(most)
        content = bytearray()
        async for part in response.aiter_stream():
            content += part
            if len(content) > most:
                raise over_bytes(most)
        return bytes(content)

    async def _resolve(self, host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._lookups, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return [str(address[0]) for *_, address in found]


class _Forbidden(Exception):
    """A host with an address that is not public."""


class _PublicOnly(httpcore.AsyncNetworkBackend):
    """Connects to public addresses only."""

    def __init__(self, resolve: Resolve, inner: httpcore.AsyncNetworkBackend) -> None:
        self._resolve, self._inner = resolve, inner

    async def connect_tcp(
        self, host: str, port: int, *args: Any, **kwargs: Any
    ) -> httpcore.AsyncNetworkStream:
        addresses = list(dict.fromkeys(await self._resolve(host.strip("[]"), port)))
        if not addresses or not all(map(is_public, addresses)):
            raise _Forbidden
        return await self._first(addresses, port, *args, **kwargs)

    async def _first(
        self, addresses: Iterable[str], port: int, *args: Any, **kwargs: Any
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception = httpcore.ConnectError()
        for address in addresses:
            try:
                return await self._inner.connect_tcp(address, port, *args, **kwargs)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        raise _Forbidden

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


def _parsed(text: str, ports: frozenset[int]) -> httpx.URL:
    """A URL that the policy allows, as far as its text tells."""
    try:
        url = httpx.URL(text)
        host = url.raw_host.decode("ascii")
    except (httpx.InvalidURL, UnicodeError, ValueError):
        raise _forbidden("it is not a valid URL") from None
    if url.scheme not in ("http", "https") or not _HOST.fullmatch(host):
        raise _forbidden("it must start with http:// or https:// and name a host")
    if url.userinfo:
        raise _forbidden("it must not contain a user name or password")
    if (url.port or {"http": 80, "https": 443}[url.scheme]) not in ports:
        raise _forbidden(f"its port is none of {', '.join(map(str, sorted(ports)))}")
    label = host.rstrip(".").rpartition(".")[2]
    if _NUMBER.match(label) and not _QUAD.match(host):  # 127.1, 0x7f000001, 2130706433
        raise _forbidden("its host is an unusual form of an address")
    return url


def _redirected(url: httpx.URL, location: str, ports: frozenset[int]) -> httpx.URL:
    try:
        text = str(url.join(location))
    except (httpx.InvalidURL, UnicodeError, ValueError):
        raise _forbidden("it redirects to what is not a valid URL") from None
    new = _parsed(text, ports)
    if (url.scheme, new.scheme) == ("https", "http"):
        raise _forbidden("it redirects from https to http")
    return new


def _forbidden(why: str) -> PictureRefused:
    return PictureRefused(
        400, "picture_address", f"the picture's URL is refused: {why}; send a data URI instead"
    )


def _unreachable(why: str) -> PictureRefused:
    return PictureRefused(
        400, "picture_unreachable", f"the picture {why}; send it as a data URI instead"
    )
