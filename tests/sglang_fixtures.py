"""A pytest plugin: an SGLang server for tests that name it in ``pytest_plugins``."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from retrv_engine import EngineMissing
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
