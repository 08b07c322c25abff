"""What is known of a request while it is answered, for logs and metrics."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

KEY = "retrv.trace"
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def request_id(header: str | None) -> str:
    """The id that a client gave its request, where logs can hold it, else a new one."""
    if header is not None and _ID.fullmatch(header):
        return header
    return f"rerank-{uuid.uuid4().hex}"


@dataclass
class Trace:
    """A request on its way; holds nothing of its content.

    Args:
        request_id: id in logs, in the header ``X-Request-Id`` and in responses.
        started: when it came, on the monotonic clock.
        dialect: name of its dialect; empty until it is known.
        route: template of its path; empty where there is none.
        mode: mode of its ranking; empty without one.
        code: code of its error; empty without one.
        status: status of the response; 0 before it.
        documents, pictures: counts of what was sent.
        body_bytes: size of its body.
    """

    request_id: str
    started: float = field(default_factory=time.monotonic)
    dialect: str = ""
    route: str = ""
    mode: str = ""
    code: str = ""
    status: int = 0
    documents: int = 0
    pictures: int = 0
    body_bytes: int = 0

    @property
    def seconds(self) -> float:
        """Seconds since it came."""
        return time.monotonic() - self.started


def trace_of(scope: MutableMapping[str, Any]) -> Trace:
    """The trace that the front of the server gave a request."""
    return scope[KEY]
