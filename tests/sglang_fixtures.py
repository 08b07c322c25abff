"""A pytest plugin: SGLang servers, real and seeming ones, for tests that name it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from sglang_doubles import FakeProcess, FakeServer, SmallModel

from retrv_engine import EngineMissing
from retrv_engine.sglang import connection
from retrv_engine.sglang.process import ServerProcess, find_python


@pytest.fixture(scope="session")
def sglang_server(checkpoint, sglang_python) -> Iterator[ServerProcess]:
    """A server for the fixture ``checkpoint``; skips without SGLang, fails in CI."""
    arguments = dict(max_total_tokens=8192, max_running_requests=16, context_length=2048)
    server = ServerProcess(checkpoint[2], "float32", arguments, sglang_python)
    end = time.monotonic() + 300
    while not server.ended and time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{server.url}/health").is_success:
                break
        time.sleep(0.2)
    else:
        pytest.fail(f"the server did not start, {server.exit_report()}")
    yield server
    server.end()


@pytest.fixture(scope="session")
def sglang_python() -> Path:
    """The interpreter of an environment with SGLang; skips without one, fails in CI."""
    try:
        return find_python()
    except EngineMissing as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture
def small_model() -> SmallModel:
    torch.manual_seed(0)
    return SmallModel()


@pytest.fixture
def fake_server(small_model) -> Iterator[FakeServer]:
    made = FakeServer(small_model)
    yield made
    made.die()


@pytest.fixture
def processes(small_model, monkeypatch) -> Iterator[list[FakeProcess]]:
    """The processes that engines start, on the checkpoint of the model as it is now."""
    started: list[FakeProcess] = []
    servers = [FakeServer(small_model) for _ in range(4)]

    def start(*_: Any) -> FakeProcess:
        started.append(FakeProcess(servers[len(started)]))
        return started[-1]

    monkeypatch.setattr(connection, "ServerProcess", start)
    yield started
    for one in servers:
        one.die()
