"""Logs as lines of JSON: one for every request, and none with what users sent.

Not logged are queries, documents, pictures, keys, and URLs beyond a route's template. Exceptions
are logged by type and place, because their messages may quote a request.
"""

from __future__ import annotations

import logging
import re
import traceback
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pythonjsonlogger.json import JsonFormatter

LOGGER = "retrv_r1.serve"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TALKATIVE = ("httpcore", "httpx", "asyncio", "urllib3", "huggingface_hub")


@dataclass(frozen=True)
class RequestLine:
    """What is logged of a request; all of it comes from the server, but for the checked id.

    Args:
        id: id of the request; see :func:`request_id`.
        route: template of the path, such as ``/v1/rerank``.
        dialect: name of the dialect.
        status: HTTP status of the answer.
        seconds: seconds from the first byte to the last.
        phases: seconds by phase.
        counts: documents, pictures, bytes and tokens.
        mode: mode of the ranking.
        code: code of the error, where there was one.
        stream: whether the answer was a stream of events.
    """

    id: str
    route: str
    dialect: str
    status: int
    seconds: float
    phases: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    mode: str | None = None
    code: str | None = None
    stream: bool = False


def log_request(line: RequestLine) -> None:
    """Logs a request that was answered; the server's own faults count as errors."""
    values = {name: value for name, value in asdict(line).items() if value not in (None, {}, False)}
    values["seconds"] = round(line.seconds, 6)
    if line.phases:
        values["phases"] = {name: round(value, 6) for name, value in line.phases.items()}
    level = logging.ERROR if line.status == 500 else logging.INFO
    logging.getLogger(LOGGER).log(level, "request", extra={"request": values})


def request_id(header: str | None) -> str:
    """The caller's ``X-Request-ID`` if it is a plain word of up to 64 characters, else a new id."""
    if header is not None and _ID.fullmatch(header):
        return header
    return f"req-{uuid.uuid4().hex}"


def log_config(level: str = "INFO", stream: str = "ext://sys.stderr") -> dict[str, Any]:
    """Configuration for ``logging.config.dictConfig`` and for uvicorn's ``log_config``.

    All loggers write lines of JSON. Uvicorn's access log, which has URLs with their queries, is
    off: :func:`log_request` takes its place.

    Args:
        level: level of the server's own loggers; others warn only.
        stream: where lines go.
    """
    own = {"level": level, "handlers": ["lines"], "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"lines": {"()": Lines}},
        "handlers": {
            "lines": {"class": "logging.StreamHandler", "formatter": "lines", "stream": stream}
        },
        "root": {"level": "WARNING", "handlers": ["lines"]},
        "loggers": {
            LOGGER: own,
            "uvicorn": own,
            "uvicorn.error": {"level": level},
            "uvicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},
            **{name: {"level": "WARNING"} for name in _TALKATIVE},
        },
    }


class Lines(JsonFormatter):
    """A record as one line of JSON."""

    def __init__(self) -> None:
        super().__init__(["levelname", "name", "message"], timestamp="time")
        self.rename_fields = {"levelname": "level", "name": "logger", "exc_info": "error"}

    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        # Further lines of a message are another's text: asyncio puts an exception's there.
        record.message = record.message.partition("\n")[0]
        super().add_fields(log_data, record, message_dict)
        for name in ("taskName", "color_message"):  # uvicorn repeats its messages in colours
            log_data.pop(name, None)
        log_data |= log_data.pop("request", {})

    def formatException(self, ei: Any) -> Any:
        """Type and place of an exception and of those that it came from, without messages."""
        return _without_messages(ei[1])


def _without_messages(error: BaseException | None) -> dict[str, Any]:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    frames = traceback.extract_tb(seen[0].__traceback__) if seen else []
    return {
        "types": [type(one).__name__ for one in seen],
        "at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
