"""Log lines of the server: complete, JSON, and without what users sent."""

from __future__ import annotations

import io
import json
import logging
import logging.config
from collections.abc import Iterator

import pytest

from retrv_r1.serve.logs import LOGGER, RequestLine, log_config, log_request, request_id

SECRET = "my secret query"


@pytest.fixture
def lines(monkeypatch) -> Iterator[io.StringIO]:
    """What the loggers write; their configuration is put back afterwards."""
    stream = io.StringIO()
    loggers = [logging.getLogger(name) for name in (None, *log_config()["loggers"])]
    before = [(one, one.handlers[:], one.level, one.propagate) for one in loggers]
    config = log_config()
    config["handlers"]["lines"]["stream"] = stream
    logging.config.dictConfig(config)
    yield stream
    for one, handlers, level, propagate in before:
        one.handlers[:], one.propagate = handlers, propagate
        one.setLevel(level)


def read(lines: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


def test_a_request_is_one_line_with_its_id_times_and_counts(lines):
    log_request(
        RequestLine(
            "req-1",
            "/v1/rerank",
            "jina",
            200,
            0.25,
            phases={"decode": 0.2},
            counts={"documents": 3},
            mode="fast",
        )
    )
    (line,) = read(lines)
    assert line.pop("time").startswith("20")
    assert line == {
        **{"level": "INFO", "logger": LOGGER, "message": "request", "id": "req-1"},
        **{"route": "/v1/rerank", "dialect": "jina", "status": 200, "seconds": 0.25},
        **{"phases": {"decode": 0.2}, "counts": {"documents": 3}, "mode": "fast"},
    }


def test_only_a_fault_of_the_server_is_an_error(lines):
    for status in (200, 429, 499, 500):
        log_request(RequestLine("a", "/rerank", "jina", status, 0.1))
    assert [line["level"] for line in read(lines)] == ["INFO", "INFO", "INFO", "ERROR"]


def test_exceptions_are_logged_by_type_and_place_without_their_messages(lines):
    try:
        try:
            raise KeyError(SECRET)
        except KeyError as error:
            raise ValueError(f"cannot read {SECRET}") from error
    except ValueError:
        logging.getLogger("uvicorn.error").exception("failed\n%s", SECRET)
    (line,) = read(lines)
    assert SECRET not in lines.getvalue()
    assert line["message"] == "failed"
    assert line["error"]["types"] == ["ValueError", "KeyError"]
    assert "test_serve_logs.py" in line["error"]["at"][-1]


def test_the_access_log_and_the_urls_of_http_libraries_are_off(lines):
    logging.getLogger("uvicorn.access").info('"GET /rerank?key=%s"', SECRET)
    logging.getLogger("httpx").info("HTTP Request: GET https://a/?%s", SECRET)
    logging.getLogger("httpcore.connection").debug("connect %s", SECRET)
    assert lines.getvalue() == ""


def test_messages_of_uvicorn_are_not_repeated_in_colours(lines):
    logging.getLogger("uvicorn.error").info("Started", extra={"color_message": "\x1b[36mStarted"})
    (line,) = read(lines)
    assert line["message"] == "Started" and "color_message" not in line


def test_a_line_cannot_be_forged(lines):
    logging.getLogger(LOGGER).warning('x\n{"level": "INFO"}')
    assert len(read(lines)) == 1


@pytest.mark.parametrize("sane", ["a", "req-1.2_3", "0f" * 32])
def test_a_sane_request_id_is_kept(sane):
    assert request_id(sane) == sane


@pytest.mark.parametrize(
    "header", [None, "", "a b", "a\nb", "é", "x" * 65, "-a", "<script>", "a\x00", "a\n"]
)
def test_any_other_request_id_is_replaced_by_a_new_one(header):
    assert request_id(header) != request_id(header)
    assert request_id(header).startswith("req-")
