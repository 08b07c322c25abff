"""How a server is set up."""

from __future__ import annotations

from dataclasses import dataclass, field

from retrv_r1.serve.auth import Keys
from retrv_r1.serve.hosts import Hosts
from retrv_r1.serve.limits import Limits
from retrv_r1.types import ModeChoice, RetrvError

HEADER = "X-Retrv-Dialect"
"""Header by which a client names its dialect."""


@dataclass(frozen=True)
class Settings:
    """Settings of the HTTP server.

    Args:
        model: name of the model in ``/info`` and ``/v1/models``.
        limits: what is taken of a request.
        keys: API keys; without any, everybody is admitted.
        hosts: names that requests may call the server by.
        dialect: name of the dialect that all requests are taken for; found out by default.
        mode: mode of requests that name none. By default ``"auto"`` where the checkpoint says
            when a fast answer is enough, else ``"fast"``.
        strict_model: whether a request for another model is refused with 404. By default it is
            answered with a warning, because clients send their service's names.
        deadline: seconds after which a request fails with 504; None for never.
        cors: origins whose pages may call the server from a browser; ``"*"`` for all.
        keep_alive: seconds of silence after which an event stream gets a comment.
        drain: seconds that requests in work have after the signal to end.
    """

    model: str = "tiny"
    limits: Limits = field(default_factory=Limits)
    keys: Keys = field(default_factory=Keys)
    hosts: Hosts = field(default_factory=Hosts)
    dialect: str | None = None
    mode: ModeChoice | None = None
    strict_model: bool = False
    deadline: float | None = 60.0
    cors: tuple[str, ...] = ()
    keep_alive: float = 15.0
    drain: float = 30.0

    def __post_init__(self) -> None:
        from retrv_r1.serve.dialects import DIALECTS

        known = [one.name for one in DIALECTS]
        if self.dialect is not None and self.dialect not in known:
            raise RetrvError(f"there is no dialect {self.dialect!r}; use one of {', '.join(known)}")
        for origin in self.cors:
            if origin != "*" and not origin.startswith(("http://", "https://")):
                raise RetrvError(f"an origin is * or starts with http:// or https://, not {origin}")
        for name in ("deadline", "keep_alive", "drain"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise RetrvError(f"{name} must be above 0 seconds, not {value}")
