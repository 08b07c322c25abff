"""Processes that decode pictures, so that a bad one costs its own request at most."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from typing import Any

from PIL import Image

from retrv_r1.serve.decoder import LENGTH, Decoding, Fit
from retrv_r1.serve.refused import PictureRefused

__all__ = ["Decoding", "DecodingPool", "Fit"]

# Names that a Python needs to start; keys and tokens of the server's environment stay out.
_ENVIRONMENT = (
    *("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME"),
    *("SYSTEMROOT", "TMPDIR", "VIRTUAL_ENV"),
)
_START_SECONDS = 60.0
_BUFFER = 2**20


class DecoderDied(Exception):
    """A decoding process ended before it had answered."""


class _Worker:
    """One decoding process; it decodes one picture at a time."""

    def __init__(self, process: Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, decoding: Decoding) -> _Worker:
        """Starts a process; its first picture waits until it has imported its modules.

        A program of its own rather than ``multiprocessing``: that would run the server's main
        module again, and cannot end one process without the others.
        """
        kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "retrv_r1.serve.decoder", decoding.to_json()),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            env=kept | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            limit=_BUFFER,
        )
        return cls(process)

    async def ask(self, data: bytes) -> tuple[dict[str, Any], bytes]:
        """Header and pixels that the process answers.

        Raises:
            DecoderDied: it ended instead.
        """
        source, target = self.process.stdin, self.process.stdout
        assert source is not None and target is not None
        try:
            source.write(LENGTH.pack(len(data)))
            source.write(data)
            await source.drain()
            (length,) = LENGTH.unpack(await target.readexactly(LENGTH.size))
            header = json.loads(await target.readexactly(length))
            return header, await target.readexactly(header["pixels"])
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise DecoderDied from error

    async def stop(self) -> None:
        """Ends the process at once, and waits until it has."""
        if self.process.returncode is None:
            self.process.kill()
        if self.process.stdin is not None:
            self.process.stdin.close()
        await self.process.wait()


class DecodingPool:
    """Decodes pictures in processes of their own, which start when they are first needed.

    All methods belong to one event loop.

    Args:
        decoding: how pictures are decoded.
        workers: processes, and so pictures that are decoded at once.
        seconds: seconds that a picture may take.
    Attributes:
        died: processes that ended by a picture, or were ended because it took too long.
    """

    def __init__(self, decoding: Decoding, workers: int = 2, seconds: float = 20.0) -> None:
        self.decoding, self.seconds = decoding, seconds
        self.died = 0
        self._slots = asyncio.Semaphore(workers)
        self._idle: list[_Worker] = []
        self._busy: set[asyncio.Task[tuple[dict[str, Any], bytes]]] = set()
        self._closed = False

    async def decode(self, data: bytes) -> tuple[Image.Image, tuple[int, int]]:
        """As :func:`retrv_r1.serve.decoder.decode`.

        Whoever is cancelled stops waiting; a process that has begun finishes its picture, because
        a new process costs more than most pictures.

        Raises:
            PictureRefused: the picture cannot be used, took too long, or ended its process.
        """
        if self._closed:
            raise RuntimeError("the decoding pool is closed")
        await self._slots.acquire()
        if self._closed:  # while this picture waited
            self._slots.release()
            raise RuntimeError("the decoding pool is closed")
        task = asyncio.create_task(self._ask(data))
        self._busy.add(task)
        task.add_done_callback(self._done)
        header, pixels = await asyncio.shield(task)
        if "refused" in header:
            raise PictureRefused(*header["refused"])
        width, height = header["source"]
        return Image.frombytes("RGB", tuple(header["size"]), pixels), (width, height)

    async def aclose(self) -> None:
        """Ends all processes; pictures that are being decoded are refused."""
        self._closed = True
        for task in list(self._busy):
            task.cancel()
        await asyncio.gather(*self._busy, return_exceptions=True)
        while self._idle:
            await self._idle.pop().stop()

    def _done(self, task: asyncio.Task[tuple[dict[str, Any], bytes]]) -> None:
        self._busy.discard(task)
        self._slots.release()
        if not task.cancelled():
            task.exception()  # nobody may be waiting any more

    async def _ask(self, data: bytes) -> tuple[dict[str, Any], bytes]:
        worker = self._idle.pop() if self._idle else await self._start()
        try:
            async with asyncio.timeout(self.seconds):
                found = await worker.ask(data)
        except BaseException as error:
            await worker.stop()
            if not isinstance(error, DecoderDied | TimeoutError):
                raise
            self.died += 1
            raise self._refusal(error) from error
        self._idle.append(worker)
        return found

    async def _start(self) -> _Worker:
        """A process that has answered once, so that its start counts for no picture's time."""
        worker = await _Worker.start(self.decoding)
        try:
            async with asyncio.timeout(_START_SECONDS):
                await worker.ask(b"")
        except BaseException as error:
            await worker.stop()
            if isinstance(error, DecoderDied | TimeoutError):
                raise RuntimeError(
                    f"a decoding process does not start (exit status {worker.process.returncode}); "
                    f"try: {sys.executable} -m retrv_r1.serve.decoder '{{}}'"
                ) from error
            raise
        return worker

    def _refusal(self, error: BaseException) -> PictureRefused:
        if isinstance(error, TimeoutError):
            return PictureRefused(
                413,
                "max_picture_seconds",
                "decoding the picture takes longer than the limit max_picture_seconds of "
                f"{self.seconds:g} seconds; shrink it or encode it again, or start the server with "
                "--limit max_picture_seconds=N",
            )
        return PictureRefused(
            400,
            "picture_damaged",
            "the picture stopped its decoder; encode it again as PNG or JPEG",
        )
