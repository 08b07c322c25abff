"""A pytest plugin: a server of the shipped checkpoint for tests of clients."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from client_tools import KEY, QUERY, TEXTS, Served

from retrv_r1 import Reranker


@pytest.fixture(scope="session")
def served(tmp_path_factory) -> Iterator[Served]:
    """The command ``serve`` with the shipped checkpoint, in a process of its own."""
    pytest.importorskip("fastapi", reason="needs the extra serve")
    log = tmp_path_factory.mktemp("served") / "log"
    command = [sys.executable, "-m", "retrv_r1", "serve", "--port", "0", "--mode", "fast"]
    command += ["--device", "cpu", "--deadline", "300"]
    environment = os.environ | {"RETRV_API_KEYS": KEY}
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading tiny …\n"
        line = process.stdout.readline()  # printed once requests are answered
        assert line.startswith("serving tiny at "), f"{line}{log.read_text()}"
        with Reranker.from_pretrained("tiny", device="cpu") as reranker:
            ranking = reranker.rank(QUERY, TEXTS, mode="fast")
        yield Served(line.split()[-1], [(row.index, row.score) for row in ranking])
    finally:
        process.terminate()
        process.communicate(timeout=120)
