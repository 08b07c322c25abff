"""What a server takes of one request, and of all requests together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from retrv_r1.serve.errors import ApiError, over_limit, raised

MEBI = 2**20

PIXEL_BYTES = 4
"""Bytes in which Pillow keeps an RGB pixel."""


@dataclass(frozen=True)
class Limits:
    """Limits of a request; one that is over a limit gets status 413 with the limit's name.

    Args:
        max_body_bytes: bytes of a body.
        max_documents: documents, or pairs of a score request.
        max_pictures: pictures of a request, the query's included.
        max_total_pixels: pixels of all pictures of a request, in the size that the model reads.
        max_json_values: items of all lists, and fields of all objects, of a body.
        max_text_characters: characters of one text.
        max_total_characters: characters of all texts of a request.
        max_reasoning_tokens: largest ``retrv.max_reasoning_tokens``.
        max_votes: largest ``retrv.votes``.
        max_requests: requests between their first byte and their answer; more get 429.
        max_held_bytes: bytes of all these requests: of bodies, of decoded pictures, and of files
            and fetched pictures that wait to be decoded; more get 429.
        body_seconds: seconds in which a body must arrive.
        header_seconds: seconds in which headers must arrive; else the connection is closed.
        write_seconds: seconds in which a client must take the next piece of its answer; else the
            connection is closed.
    """

    max_body_bytes: int = 128 * MEBI
    max_documents: int = 1000
    max_pictures: int = 256
    max_total_pixels: int = 256 * MEBI
    max_json_values: int = 200_000
    max_text_characters: int = 1_000_000
    max_total_characters: int = 20_000_000
    max_reasoning_tokens: int = 4096
    max_votes: int = 16
    max_requests: int = 512
    max_held_bytes: int = 2048 * MEBI
    body_seconds: float = 60.0
    header_seconds: float = 30.0
    write_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"the limit {name} must be above 0, not {value}")


class Gate:
    """Counts requests in the server and the bytes that they hold; belongs to one event loop."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.requests = self.held = 0

    @contextmanager
    def enter(self) -> Iterator[Held]:
        """Around a request.

        Raises:
            ApiError: 429; there are as many requests as the server holds.
        """
        if self.requests >= self.limits.max_requests:
            raise _busy("the server holds as many requests as it takes")
        self.requests += 1
        held = Held(self)
        try:
            yield held
        finally:
            self.requests -= 1
            held.release()


class Held:
    """Bytes that one request holds, and pixels of its pictures."""

    def __init__(self, gate: Gate) -> None:
        self.gate, self.count, self.pixels = gate, 0, 0

    def add_pixels(self, count: int) -> None:
        """Counts a decoded picture in.

        Raises:
            ApiError: 413; the request's pictures have too many pixels. 429 as of :meth:`add`.
        """
        most = self.gate.limits.max_total_pixels
        if self.pixels + count > most:
            raise over_limit(
                "max_total_pixels",
                most,
                None,
                "pixels",
                "send smaller pictures, or several requests",
                has="the pictures together are over ",
            )
        self.pixels += count
        self.add(PIXEL_BYTES * count)

    def add(self, count: int) -> None:
        """Counts bytes in; 429 where all requests together hold too many."""
        if self.gate.held + count > self.gate.limits.max_held_bytes:
            raise _busy("all requests together are as large as the server holds")
        self.count += count
        self.gate.held += count

    @contextmanager
    def adding(self, count: int) -> Iterator[None]:
        """Around what holds bytes for a while only; 429 as of :meth:`add`."""
        self.add(count)
        try:
            yield
        finally:
            self.count -= count
            self.gate.held -= count

    def release(self) -> None:
        """Counts all of them out."""
        self.gate.held -= self.count
        self.count = 0


async def read_body(
    chunks: AsyncIterator[bytes], announced: str | None, limits: Limits, held: Held
) -> bytes:
    """A body, which is measured while it arrives.

    Args:
        chunks: the body's pieces.
        announced: the header ``Content-Length``, if there is one.
    Raises:
        ApiError: 400 for a wrong length, 408 for a body that is too slow, 413 for one that is too
            large, 429 if all bodies together are.
    """
    most = limits.max_body_bytes
    try:
        async with asyncio.timeout(limits.body_seconds):
            if announced is not None and not announced.isdecimal():
                raise ApiError(400, "bad_length", "Content-Length must be a number")
            if announced is not None and int(announced[:20]) > most:
                await _drain(chunks, most)
                raise _too_large(most, int(announced[:20]))
            parts: list[bytes] = []
            size = 0
            async for chunk in chunks:
                size += len(chunk)
                if size > most:
                    parts.clear()
                    await _drain(chunks, most)
                    raise _too_large(most, None)
                held.add(len(chunk))
                parts.append(chunk)
            return b"".join(parts)
    except TimeoutError:
        raise ApiError(
            408,
            "body_seconds",
            f"the body did not arrive within {limits.body_seconds:g} s; send it faster, or "
            f"{raised('body_seconds')}",
        ) from None


async def _drain(chunks: AsyncIterator[bytes], most: int) -> None:
    """Throws away what still comes, for a while: a client that writes does not read the answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(2):
            async for chunk in chunks:
                most -= len(chunk)
                if most < 0:
                    return


def _too_large(most: int, found: int | None) -> ApiError:
    return over_limit(
        "max_body_bytes", most, found, "bytes", "send smaller pictures, or several requests"
    )


def _busy(why: str) -> ApiError:
    return ApiError(429, "server_busy", f"{why}; try again later", retry_after=1)
