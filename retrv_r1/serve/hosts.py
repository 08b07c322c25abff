"""Names that a server answers to, so that no page of the web can pose as one of its own.

A page may have its own name lead to 127.0.0.1 once it is loaded (DNS rebinding). Its browser then
takes a server there for the page's own, and lets it ask and read; but it sends the page's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from retrv_r1.serve.errors import ApiError
from retrv_r1.types import RetrvError

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")


@dataclass(frozen=True)
class Hosts:
    """Names that requests may call a server by; without any, all are taken.

    Args:
        names: names besides ``localhost`` and addresses of this machine alone, in lower case.
    """

    names: frozenset[str] | None = None

    @classmethod
    def of(cls, given: Iterable[str], host: str, bound: Iterable[str], *, keys: bool) -> Hosts:
        """Those of a server: all, unless it relies on being reached from this machine alone.

        Args:
            given: names that its owner allows; any makes it refuse all others.
            host: name that it was told to listen on.
            bound: addresses that it listens on.
            keys: whether it has API keys, which no page of the web knows.
        Raises:
            RetrvError: a given name is none.
        """
        allowed = list(given)
        for one in allowed:
            if set("/@") & set(one) or not _is_host(_name(one)):
                raise RetrvError(
                    "--allowed-host takes a whole name such as rank.example.org, or an address, "
                    f"not {one!r}"
                )
        if not allowed and (keys or not all(map(_is_local, bound))):
            return cls()
        return cls(frozenset(filter(None, map(_name, (host, *allowed)))))

    def check(self, header: str | None) -> None:
        """Lets a request pass by its header ``Host``; browsers always send one.

        Raises:
            ApiError: 421; it calls the server by another name.
        """
        if self.names is None or header is None:
            return
        name = _name(header)
        if name not in self.names and not _is_local(name):
            raise ApiError(
                421,
                "unknown_host",
                "this server does not answer to that name: call it localhost, start it with "
                "--allowed-host NAME, or give it an API key",
            )


def _name(text: str) -> str:
    """The name in ``name``, ``name:port`` or an address; empty where there is none."""
    try:
        return str(ip_address(text.strip("[]")))
    except ValueError:
        pass
    try:
        return (urlsplit(f"//{text}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_host(name: str) -> bool:
    """Whether a name is one that a client may send: an address or a host's, no pattern."""
    try:
        ip_address(name)
    except ValueError:
        return _HOST.fullmatch(name) is not None
    return True


def _is_local(name: str) -> bool:
    """Whether a name is this machine's alone."""
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False
