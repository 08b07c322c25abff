"""How parts of the SGLang engine end: closed in a callback, cancelled at a bad time, failed."""

from __future__ import annotations

import asyncio
import json
import tempfile
import threading
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from sglang_doubles import QUICK, changed, make_engine, until

from retrv_engine import DeadlineExceeded, EngineDied, EngineMissing
from retrv_engine.sglang import connection, process
from retrv_engine.sglang.client import Client, _weight_messages
from retrv_engine.sglang.concurrency import CandidateLoader
from retrv_engine.sglang.worker import server

pytest_plugins = ["sglang_fixtures"]


def test_an_engine_can_be_closed_in_a_handles_callback(small_model, processes):
    engine = make_engine(small_model)
    refused: list[str] = []

    def close(_: Any) -> None:
        try:
            engine.flush()
        except RuntimeError as error:
            refused.append(str(error))
        engine.close()

    processes[0].server.computes.clear()
    handle = engine.submit(QUICK)
    handle.future.add_done_callback(close)
    processes[0].server.computes.set()
    assert handle.result(timeout=10).answer == 0
    until(lambda: not engine._loop._thread.is_alive())
    assert processes[0].ended and "cannot wait" in refused[0]


def test_a_source_that_cannot_be_hashed_is_an_error():
    @dataclass
    class Source:
        number: int = 0

        def load(self, names: Any) -> Any:
            return [[9] for _ in names]

    async def run() -> None:
        await asyncio.wait_for(CandidateLoader().load((Source(), 1)), 10)

    with pytest.raises(TypeError, match="unhashable"):
        asyncio.run(run())


def test_an_answer_that_arrives_as_its_call_is_cancelled_is_closed():
    closed: list[bool] = []

    class Body(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b""

        async def aclose(self) -> None:
            closed.append(True)

    async def run() -> None:
        client = Client("http://server", 10.0)

        async def ask() -> None:
            async for _ in client.generate({}):
                pass

        async def answer(_: httpx.Request) -> httpx.Response:
            asking.cancel()
            return httpx.Response(200, stream=Body())

        client._http = httpx.AsyncClient(
            base_url="http://server", transport=httpx.MockTransport(answer)
        )
        asking = asyncio.create_task(ask())
        with pytest.raises(asyncio.CancelledError):
            await asking
        await client.close()

    asyncio.run(run())
    assert closed


def test_a_message_of_weights_takes_little_more_memory_than_the_weights():
    size = 8 * 2**20
    weights = {"a": torch.ones(size // 4)}
    messages = _weight_messages(weights, "7")
    tracemalloc.start()
    try:
        message = next(messages)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1.5 * size and peak < 4.2 * size  # 4/3 is the message itself
    assert json.loads(message)["weight_version"] == "7" and json.loads(message)["flush_cache"]


@pytest.fixture
def logs(tmp_path, monkeypatch) -> Path:
    """The folder in which logs are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "logs"))
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs"


def test_an_interpreter_that_does_not_run_leaves_no_log(small_model, logs, tmp_path):
    with pytest.raises(EngineMissing, match=r"nowhere does not run .*: name another python"):
        make_engine(small_model, python=tmp_path / "nowhere")
    assert not list(logs.iterdir())


def test_a_log_that_is_gone_hides_no_error(small_model, logs, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "SECONDS_TO_END", 0.2)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nrm {logs}/*\nexit 3\n")
    python.chmod(0o755)
    with pytest.raises(EngineDied, match="did not start, exit status 3"):
        make_engine(small_model, python=python)


def test_a_server_that_was_restarted_is_noticed(small_model, fake_server):
    """Its weights have another version at each start; the engine connects and compares again."""

    def version() -> str:
        words = server.default_arguments(cuda=True)
        return words[words.index("--weight-version") + 1]

    fake_server.version = version()
    with make_engine(small_model, url=fake_server.url) as engine:
        assert engine.generate([QUICK])[0].answer == 0
        fake_server.version = version()
        with pytest.raises(EngineDied, match="it was restarted"):
            engine.generate([QUICK])
        assert engine.generate([QUICK])[0].answer == 0, "with the same weights"


def test_flushing_waits_until_the_server_has_aborted_calls(small_model, fake_server):
    with make_engine(small_model, url=fake_server.url) as engine:
        fake_server.computes.clear()
        handle = engine.submit(QUICK)
        until(lambda: fake_server.count("/generate") == 1)
        fake_server.hangs = True
        handle.cancel()
        until(lambda: fake_server.count("/abort_request") == 1)
        thread = threading.Thread(target=engine.flush)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive() and not fake_server.count("/flush_cache")
        fake_server.hangs = False
        fake_server.computes.set()
        thread.join(10)
        assert fake_server.count("/flush_cache") == 1


def test_new_weights_wait_for_a_start(small_model, processes, monkeypatch):
    """A start reads the model, even if nobody waits for it any more."""
    start = vars(connection)["ServerProcess"]

    def hanging(*values: Any) -> Any:
        made = start(*values)
        made.server.hangs = True
        return made

    with make_engine(small_model) as engine:
        processes[0].end()
        with pytest.raises(EngineDied):
            engine.generate([QUICK])
        monkeypatch.setattr(connection, "ServerProcess", hanging)
        with pytest.raises(DeadlineExceeded):
            engine.submit(QUICK, deadline=0.05).result(timeout=8)
        until(lambda: len(processes) == 2)
        new = changed(small_model, "head.weight")
        thread = threading.Thread(target=engine.load_weights, args=(new,))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive() and not torch.equal(small_model.head.weight, new["head.weight"])
        processes[1].server.hangs = False
        thread.join(10)
        assert torch.equal(processes[1].server.weights["head.weight"], new["head.weight"])
