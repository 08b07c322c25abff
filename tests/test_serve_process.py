"""The command ``serve`` as a process: it does what docs/serve.md shows, and ends well."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from retrv_r1.command.cli import app
from retrv_r1.command.serve import limits_of
from retrv_r1.serve.pictures import PicturePolicy
from retrv_r1.types import RetrvError

ROOT = Path(__file__).parent.parent
ASK = {"query": "a red apple", "documents": ["a green pear", "an apple that is red"]}
LONG = {**ASK, "stream": True, "retrv": {"mode": "reason", "votes": 8}}


class Process:
    """A running server; ``url`` is what it printed when it was ready."""

    def __init__(self, *options: str) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "RETRV_API_KEYS"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "retrv_r1", "serve", "--port", "0", *options],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "loading tiny …\n"
        line = self.process.stdout.readline()
        found = re.fullmatch(r"serving tiny at (http://127.0.0.1:\d+)\n", line)
        assert found, line or self.process.communicate()[1]
        self.url = found[1]

    def end(self) -> tuple[int, list[dict]]:
        """Sends SIGTERM; the exit status, and the lines of the log."""
        self.process.send_signal(signal.SIGTERM)
        log = self.process.communicate(timeout=60)[1]
        return self.process.returncode, [json.loads(line) for line in log.splitlines()]


@pytest.fixture(scope="module")
def running() -> Iterator[Process]:
    process = Process()
    yield process
    if process.process.poll() is None:
        process.end()


def curl_lines() -> list[str]:
    page = (ROOT / "docs" / "serve.md").read_text()
    blocks = [token.content for token in MarkdownIt().parse(page) if token.type == "code_block"]
    return [line for block in blocks for line in block.splitlines() if line.startswith("curl ")]


def test_the_page_shows_every_kind_of_request():
    text = "\n".join(curl_lines())
    for part in ("/v1/rerank", "/sglang/", "/score", "image", "stream", "budget_ms", "/health"):
        assert part in text


def test_without_keys_no_page_can_call_it_by_another_name(running):
    for name, status in (("localhost", 200), ("evil.example", 421)):
        assert httpx.get(f"{running.url}/health", headers={"Host": name}).status_code == status


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("line", curl_lines(), ids=range(len(curl_lines())))
def test_a_line_of_the_page_runs(running, line):
    line = line.replace("localhost:8000", running.url, 1)
    line = line.replace("curl ", "curl -sS --fail-with-body --max-time 60 ", 1)
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    if "/metrics" in line:
        assert "retrv_requests_total" in done.stdout
    elif "stream" in line:
        assert "event: ranking\n" in done.stdout
    else:
        assert json.loads(done.stdout)


def test_a_closed_connection_ends_the_ranking(running):
    body = json.dumps(LONG).encode()
    head = "POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
    until = time.monotonic() + 30
    while 'status="499"} 1.0' not in (text := httpx.get(f"{running.url}/metrics").text):
        assert time.monotonic() < until, text
        time.sleep(0.05)
    assert "retrv_running 0.0" in text and "retrv_engine_running 0.0" in text


def test_a_body_in_chunks_is_read(running):
    parts = iter([b'{"query": "a red', b' apple", "documents":', b' ["a car", "an apple"]}'])
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{running.url}/v1/rerank", content=parts, headers=headers, timeout=60)
    assert answer.status_code == 200 and len(answer.json()["results"]) == 2


def test_a_signal_lets_requests_end(running):
    with httpx.stream("POST", f"{running.url}/v1/rerank", json=LONG, timeout=60) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        running.process.send_signal(signal.SIGTERM)
        rest = list(lines)
    assert first == "event: reasoning" and "event: ranking" in rest
    status, log = running.end()
    assert status == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{running.url}/health")
    requests = [line for line in log if line["message"] == "request"]
    assert requests[-1]["status"] == 200 and requests[-1]["mode"] == "reason"
    assert not any(word in json.dumps(log) for word in ("apple", "pear"))
    assert not any(line["level"] == "ERROR" for line in log)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--model", "no-such-folder/x"], "no-such-folder"),
        (["--dialect", "klingon"], "there is no dialect 'klingon'; use one of"),
        (["--limit", "max_documents=0"], "max_documents must be above 0"),
        (["--limit", "colour=3"], "--limit takes NAME=N with one of max_body_bytes"),
        (["--limit", "max_votes=many"], "max_votes must be a number"),
        (["--limit", "body_seconds=nan"], "body_seconds must be above 0"),
        (["--limit", "max_picture_seconds=0"], "max_picture_seconds must be above 0"),
        (["--limit", "max_picture_pixels=99999999"], "max_picture_pixels must be at most"),
        (["--api-key", "short"], "API key 1 of --api-key must be at least 8"),
        (["--api-key-file", "no-such-file"], "cannot read the API keys in no-such-file"),
        (["--cors", "example.org"], "an origin is * or starts with"),
        (["--file-root", "no-such-folder"], "no-such-folder"),
        (["--url", "http://localhost:1"], "--url needs --engine sglang"),
    ],
)
def test_what_cannot_be_served_is_one_line(arguments, part, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = CliRunner().invoke(app, ["serve", "--port", "0", *arguments])
    said = [line for line in result.output.splitlines() if not line.startswith("{")]
    assert result.exit_code == 2, result.output
    if said[0].startswith("loading "):
        assert arguments[0] in ("--model", "--url"), "all else is checked before"
        said = said[1:]
    assert len(said) == 1 and said[0].startswith("error: ") and part in said[0]


def test_limits_are_given_by_name():
    given = [
        "max_documents=20",
        "body_seconds=2.5",
        "max_picture_bytes=9",
        "max_picture_seconds=.5",
    ]
    limits, policy = limits_of(given, PicturePolicy(remote=True))
    assert (limits.max_documents, limits.body_seconds) == (20, 2.5)
    assert (policy.max_bytes, policy.max_seconds, policy.remote) == (9, 0.5, True)
    with pytest.raises(RetrvError):
        limits_of(["max_documents"], PicturePolicy())
