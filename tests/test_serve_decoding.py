"""Decoding in processes: what a picture can do to its process, and to nothing else."""

from __future__ import annotations

import asyncio
import io
import os
import struct
import sys
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrv_r1.serve import decoder
from retrv_r1.serve.decoder import LENGTH, Decoding, Fit
from retrv_r1.serve.decoding import DecodingPool
from retrv_r1.serve.refused import PictureRefused

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@cache
def bomb(width: int, height: int) -> bytes:
    """A small PNG of many white pixels."""
    rows = zlib.compressobj(1)
    data = b"".join(rows.compress(b"\0" + b"\xff" * 4 * width) for _ in range(height))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)),
        (b"IDAT", data + rows.flush()),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def test_a_bomb_is_refused_within_its_limit_of_memory_and_the_next_picture_is_decoded():
    async def run() -> None:
        pool = DecodingPool(Decoding(memory=50 * 2**20), workers=1)
        with pytest.raises(PictureRefused) as refused:
            await pool.decode(bomb(4000, 4000))
        assert (refused.value.status, refused.value.code) == (413, "max_picture_memory")
        picture, size = await pool.decode(encoded(noise(300, 200)))
        assert picture.tobytes() == noise(300, 200).tobytes() and size == (300, 200)
        (worker,) = pool._idle
        status = Path(f"/proc/{worker.process.pid}/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        assert int(peak.split()[1]) < 250 * 1024
        await pool.aclose()

    asyncio.run(run())


@pytest.mark.parametrize("signal_name", ["SIGSEGV"])
def test_a_process_that_dies_costs_its_own_picture_only(signal_name):
    import signal

    async def run() -> None:
        pool = DecodingPool(Decoding(), workers=2)
        others = [encoded(noise(40, 30)), encoded(noise(20, 10), "WEBP", lossless=True)]
        await asyncio.gather(*map(pool.decode, others))
        victim = pool._idle[-1].process
        slow = asyncio.create_task(pool.decode(bomb(4000, 4000)))
        await asyncio.sleep(0.02)
        other = asyncio.create_task(pool.decode(others[0]))
        os.kill(victim.pid, getattr(signal, signal_name))
        with pytest.raises(PictureRefused) as refused:
            await slow
        assert (refused.value.status, refused.value.code) == (400, "picture_damaged")
        assert (await other)[0].tobytes() == noise(40, 30).tobytes()
        assert pool.died == 1
        again = await asyncio.gather(*map(pool.decode, others * 2))
        assert [picture.size for picture, _ in again] == [(40, 30), (20, 10)] * 2
        await pool.aclose()

    asyncio.run(run())


def test_a_picture_that_takes_too_long_is_left_and_its_process_ended():
    async def run() -> None:
        pool = DecodingPool(Decoding(), workers=1, seconds=0.1)
        with pytest.raises(PictureRefused) as refused:
            await pool.decode(bomb(4000, 4000))
        assert (refused.value.status, refused.value.code) == (413, "max_picture_seconds")
        assert pool.died == 1 and pool._idle == []
        await pool.aclose()

    asyncio.run(run())


def test_who_is_cancelled_does_not_lose_the_process_and_frees_its_place():
    async def run() -> None:
        pool = DecodingPool(Decoding(), workers=1)
        await pool.decode(encoded(noise(20, 20)))
        (worker,) = pool._idle
        slow = [asyncio.create_task(pool.decode(bomb(4000, 4000))) for _ in range(3)]
        await asyncio.sleep(0.05)
        for task in slow:
            task.cancel()
        assert len(await asyncio.gather(*slow, return_exceptions=True)) == 3
        assert (await pool.decode(encoded(noise(30, 30))))[1] == (30, 30)
        assert pool._idle == [worker] and pool.died == 0
        await pool.aclose()

    asyncio.run(run())


def test_closing_ends_all_processes_and_leaves_nothing_open():
    async def run() -> None:
        before = len(os.listdir("/proc/self/fd"))
        pool = DecodingPool(Decoding(), workers=2)
        data = encoded(noise(30, 30))
        await asyncio.gather(*(pool.decode(data) for _ in range(5)))
        pids = [worker.process.pid for worker in pool._idle]
        assert len(pids) == 2
        busy = asyncio.create_task(pool.decode(bomb(4000, 4000)))
        await asyncio.sleep(0.02)
        await pool.aclose()
        assert isinstance((await asyncio.gather(busy, return_exceptions=True))[0], BaseException)
        await asyncio.sleep(0)
        assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
        assert len(os.listdir("/proc/self/fd")) <= before
        with pytest.raises(RuntimeError, match="closed"):
            await pool.decode(data)

    asyncio.run(run())


def test_a_process_knows_no_secrets_and_cannot_write_files(monkeypatch, tmp_path):
    monkeypatch.setenv("RETRV_API_KEY", "secret")

    async def run() -> None:
        pool = DecodingPool(Decoding(), workers=1)
        await pool.decode(encoded(noise(30, 30)))
        pid = pool._idle[0].process.pid
        assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes()
        limits = Path(f"/proc/{pid}/limits").read_text()
        sizes = next(line for line in limits.splitlines() if line.startswith("Max file size"))
        assert sizes.split()[3:5] == ["0", "0"]
        await pool.aclose()

    asyncio.run(run())


def test_a_process_that_cannot_start_says_how_to_find_out_why(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")

    async def run() -> None:
        pool = DecodingPool(Decoding(), workers=1)
        with pytest.raises(RuntimeError, match="does not start"):
            await pool.decode(b"x")
        await pool.aclose()

    asyncio.run(run())


def test_settings_reach_the_process_whole():
    decoding = Decoding(1000, Fit(28, 100, 200, True), 5)
    assert Decoding.from_json(decoding.to_json()) == decoding
    assert Decoding.from_json(Decoding().to_json()) == Decoding()


def test_the_program_answers_until_its_input_ends():
    """In this process, so that its lines are seen to be run."""
    source, target = io.BytesIO(), io.BytesIO()
    for data in (encoded(noise(4, 2)), b"text", encoded(noise(40, 20))[:-500]):
        source.write(LENGTH.pack(len(data)) + data)
    source.write(LENGTH.pack(100) + b"cut off")
    source.seek(0)
    decoder._serve(source, target, Decoding())
    answers = target.getvalue()
    (length,) = LENGTH.unpack(answers[:8])
    assert answers[8 + length : 8 + length + 24] == noise(4, 2).tobytes()
    assert answers.count(b'"refused"') == 2
