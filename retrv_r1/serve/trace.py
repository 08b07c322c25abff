"""What is known of a request while it is answered, for logs and metrics."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import MutableMapping
from dataclasses import asdict, dataclass, field
from typing import Any

from retrv_r1.serve.logs import RequestLine
from retrv_r1.types import RankedResults

KEY = "retrv.trace"


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
        stream: whether it is answered with events.
        phases: seconds by phase of its rankings.
        tokens: rows read and tokens written, by kind.
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
    stream: bool = False
    phases: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    tokens: Counter[str] = field(default_factory=Counter)

    @property
    def seconds(self) -> float:
        """Seconds since it came."""
        return time.monotonic() - self.started

    def add(self, results: RankedResults) -> None:
        """Notes what a ranking has cost."""
        self.mode = results.mode
        for phase, seconds in results.bill.seconds.items():
            self.phases[phase] += seconds
        self.tokens.update(asdict(results.bill.tokens))

    def line(self) -> RequestLine:
        """What is logged at its end."""
        counts = {
            "documents": self.documents,
            "pictures": self.pictures,
            "body_bytes": self.body_bytes,
            **{f"{kind}_tokens": count for kind, count in self.tokens.items()},
        }
        return RequestLine(
            self.request_id,
            self.route,
            self.dialect,
            self.status,
            self.seconds,
            dict(self.phases),
            {name: count for name, count in counts.items() if count},
            self.mode or None,
            self.code or None,
            self.stream,
        )


def trace_of(scope: MutableMapping[str, Any]) -> Trace:
    """The trace that the front of the server gave a request."""
    return scope[KEY]
