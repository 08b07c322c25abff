"""Reads the pictures of requests: safely, each once, and in the size that the model needs."""

from __future__ import annotations

import asyncio
import hashlib
import io
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from PIL import Image

from retrv_r1.images import MAX_SOURCE_PIXELS, SourceFile, mark_loaded
from retrv_r1.serve.decoder import check_kind, decode
from retrv_r1.serve.decoding import Decoding, DecodingPool, Fit
from retrv_r1.serve.fetching import Fetcher, FetchPolicy
from retrv_r1.serve.limits import Held
from retrv_r1.serve.metrics import Metrics
from retrv_r1.serve.picture_strings import Origin, file_bytes, inline_bytes, origin_of
from retrv_r1.serve.refused import PictureRefused

T = TypeVar("T")

SMALL_BYTES, SMALL_PIXELS = 2**16, 2**16
"""Sizes (as a file, decoded) up to which a thread of the server decodes a picture.

A process adds about 1 ms of processor time to each picture, half of it here. A PNG of 48 x 48
pixels takes 0.2 ms, one of 256 x 256 pixels 3.5 ms (one core of an EPYC).
"""

SMALL_TEXT = 2**16
"""Characters of an inline picture up to which its bytes are looked up on the event loop: 0.25 ms at
most, 0.04 ms for a picture of 4 kB. Handing it to a thread costs the loop 0.13 ms."""

PICTURE_LIMITS: Mapping[str, str] = {
    "max_picture_bytes": "max_bytes",
    "max_picture_pixels": "max_pixels",
    "max_picture_memory": "max_memory",
    "max_picture_seconds": "max_seconds",
}
"""Names of limits of a picture, in errors and settings, and of the fields of a policy."""

# Decoders that threads of the server run: the plain and oldest ones. All others stay in processes.
_IN_THREADS = ("PNG", "JPEG", "GIF", "BMP")
_THREADS = 4


@dataclass(frozen=True)
class PicturePolicy:
    """Which pictures are taken.

    Args:
        remote: whether pictures are fetched from http and https URLs.
        file_root: folder below which ``file:`` URLs are read; None refuses them.
        max_bytes: most bytes of a picture, encoded.
        max_pixels: most pixels that a picture decodes to.
        max_memory: bytes that decoding a picture may use.
        max_seconds: seconds that decoding a picture may take.
        fetch: how is fetched where ``remote`` is on; its ``max_bytes`` is the policy's.
        workers: processes that decode.
        kept_bytes: bytes of decoded pictures that are kept for requests to come.
    """

    remote: bool = False
    file_root: Path | None = None
    max_bytes: int = 20 * 2**20
    max_pixels: int = MAX_SOURCE_PIXELS
    max_memory: int = 2 * 2**30
    max_seconds: float = 20.0
    fetch: FetchPolicy = field(default_factory=FetchPolicy)
    workers: int = 2
    kept_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        for name, value in self.limits().items():
            if not value > 0:
                raise ValueError(f"the limit {name} must be above 0, not {value}")
        if self.max_pixels > MAX_SOURCE_PIXELS:
            raise ValueError(
                f"the limit max_picture_pixels must be at most {MAX_SOURCE_PIXELS}, not "
                f"{self.max_pixels}"
            )
        if self.file_root is not None and not self.file_root.is_dir():
            raise ValueError(f"the folder of file: pictures does not exist: {self.file_root}")

    def limits(self) -> dict[str, float]:
        """The limits of a picture, by the names that clients know."""
        return {known: getattr(self, own) for known, own in PICTURE_LIMITS.items()}


@dataclass(frozen=True)
class ReadPicture:
    """A picture of a request.

    Attributes:
        image: RGB picture for :class:`retrv_r1.Item`. It hashes like the encoded bytes, so that
            features are found whichever way the picture came.
        bytes: encoded size.
        width, height: size of the picture before it was fitted to the model.
        origin: where it came from.
    """

    image: Image.Image
    bytes: int
    width: int
    height: int
    origin: Origin


class PictureReader:
    """Reads pictures; any number may be read at once, the work is bounded inside.

    All methods belong to one event loop.

    Args:
        fit: size that the model reads; None keeps more pixels than most models need.
        metrics: counts what is read.
        fetcher: fetches remote pictures; one of the policy when None.
    """

    def __init__(
        self,
        policy: PicturePolicy | None = None,
        *,
        fit: Fit | None = None,
        metrics: Metrics | None = None,
        fetcher: Fetcher | None = None,
    ) -> None:
        self.policy = policy = policy or PicturePolicy()
        self.decoding = Decoding(policy.max_pixels, fit, policy.max_memory)
        self.pool = DecodingPool(self.decoding, policy.workers, policy.max_seconds)
        self._metrics, self._fetcher = metrics, fetcher
        self._fetches = asyncio.Semaphore(policy.fetch.connections)
        # Threads of their own: those of asyncio may all wait for the engine.
        self._threads = ThreadPoolExecutor(_THREADS, "retrv-pictures")
        self._kept: OrderedDict[bytes, ReadPicture] = OrderedDict()
        self._kept_bytes = 0

    async def read(self, value: str, held: Held | None = None) -> ReadPicture:
        """The picture that a string of a request stands for.

        Args:
            value: data URI, base64, or an http, https or file URL where the policy allows it.
            held: counts in bytes of files and of fetched pictures while they wait to be decoded;
                those of the others are the request's own.
        Raises:
            PictureRefused: it cannot be used; the message says the fix.
            ApiError: 429; all requests together hold too much.
        """
        start = time.perf_counter()
        try:
            picture = await self._read(value, held)
        except PictureRefused as refused:
            if self._metrics is not None:
                self._metrics.refused(refused.code)
            raise
        if self._metrics is not None:
            self._metrics.picture(picture.origin, picture.bytes, time.perf_counter() - start)
        return picture

    def fit_to(self, fit: Fit | None) -> None:
        """Sets the size that the model reads, when that is known; better before the first picture.

        Features do not depend on it, only what is kept and passed on.
        """
        self.decoding = self.pool.decoding = replace(self.decoding, fit=fit)

    async def aclose(self) -> None:
        """Ends processes, threads and connections."""
        await self.pool.aclose()
        if self._fetcher is not None:
            await self._fetcher.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _read(self, value: str, held: Held | None) -> ReadPicture:
        origin = origin_of(value)
        if origin == "remote":
            async with self._fetches:  # also holds back the bytes of pictures to be decoded
                data = await self._fetch(value)
                return await self._decode(data, origin, held)
        most = self.policy.max_bytes
        if origin == "inline":
            if len(value) > SMALL_TEXT:
                return await self._decode(lambda: inline_bytes(value, most), origin, None)
            content = inline_bytes(value, most)
            kept = self._known(hashlib.sha256(content).digest(), origin)
            return kept or await self._decode(lambda: content, origin, None)
        root = self.policy.file_root
        if root is None:
            raise PictureRefused(
                400,
                "picture_files_off",
                "file: pictures are off; send a data URI, or start the server with --file-root DIR",
            )
        return await self._decode(lambda: file_bytes(value, root, most), origin, held)

    async def _fetch(self, url: str) -> Callable[[], bytes]:
        if not self.policy.remote:
            raise PictureRefused(
                400,
                "remote_pictures_off",
                "remote pictures are off; send a data URI, or start the server with "
                "--allow-remote-pictures",
            )
        if self._fetcher is None:
            self._fetcher = Fetcher(replace(self.policy.fetch, max_bytes=self.policy.max_bytes))
        data = await self._fetcher.fetch(url)
        return lambda: data

    async def _decode(
        self, load: Callable[[], bytes], origin: Origin, held: Held | None
    ) -> ReadPicture:
        data, digest, decoded = await self._in_thread(lambda: self._start(load()))
        if (kept := self._known(digest, origin)) is not None:
            return kept
        if decoded is None:
            with nullcontext() if held is None else held.adding(len(data)):
                decoded = await self.pool.decode(data)
        image, (width, height) = decoded
        picture = ReadPicture(
            mark_loaded(image, SourceFile(digest, len(data))), len(data), width, height, origin
        )
        self._keep(digest, picture)
        return picture

    def _known(self, digest: bytes, origin: Origin) -> ReadPicture | None:
        """The picture of a hash, if it is kept."""
        if (kept := self._kept.get(digest)) is None:
            return None
        self._kept.move_to_end(digest)
        return ReadPicture(kept.image, kept.bytes, kept.width, kept.height, origin)

    def _start(
        self, data: bytes
    ) -> tuple[bytes, bytes, tuple[Image.Image, tuple[int, int]] | None]:
        """The bytes, their hash, and the decoded picture if it is small and not kept."""
        digest = hashlib.sha256(data).digest()
        if digest in self._kept:
            return data, digest, None
        check_kind(data)
        small = _is_small(data)
        return data, digest, decode(data, self.decoding) if small else None

    def _keep(self, digest: bytes, picture: ReadPicture) -> None:
        size = _size(picture)
        if digest in self._kept or size > self.policy.kept_bytes:
            return
        self._kept[digest] = picture
        self._kept_bytes += size
        while self._kept_bytes > self.policy.kept_bytes:
            _, old = self._kept.popitem(last=False)
            self._kept_bytes -= _size(old)

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)


def _size(picture: ReadPicture) -> int:
    """Bytes that a kept picture takes, with its objects: else dots of one pixel would pile up."""
    return 2048 + 3 * picture.image.width * picture.image.height


def _is_small(data: bytes) -> bool:
    """Whether a picture costs less to decode here than to hand to a process, and is plain."""
    if len(data) > SMALL_BYTES:
        return False
    try:
        with Image.open(io.BytesIO(data), formats=_IN_THREADS) as header:
            return header.width * header.height <= SMALL_PIXELS
    except Exception:  # of other formats, damaged or too large: a process finds out
        return False
