"""API keys: kept as digests, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from retrv_r1.serve.errors import ApiError
from retrv_r1.types import RetrvError

VARIABLE = "RETRV_API_KEYS"
"""Environment variable with keys, separated by commas or white space."""

SHORTEST = 8
_PRINTABLE = re.compile(r"[!-~]+")


@dataclass(frozen=True, repr=False)
class Keys:
    """API keys that a server admits; without any, everybody is admitted.

    Args:
        digests: keyed digests of the keys.
        salt: key of the digests, random by default.
    """

    digests: tuple[bytes, ...] = ()
    salt: bytes = field(default_factory=lambda: os.urandom(32))

    @classmethod
    def of(cls, keys: Iterable[str]) -> Keys:
        """Keeps the digests of keys.

        Raises:
            RetrvError: a key that is too short, or that no header can hold.
        """
        salt = os.urandom(32)
        found = list(dict.fromkeys(keys))
        for number, key in enumerate(found, 1):
            _check(key, f"API key {number}")
        return cls(tuple(_digest(key.encode(), salt) for key in found), salt)

    def __bool__(self) -> bool:
        return bool(self.digests)

    def check(self, headers: Mapping[str, str]) -> None:
        """Lets a request pass if one of its headers has a key.

        Raises:
            ApiError: 401; no key, or none of these.
        """
        if not self.digests:
            return
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        shown = [headers.get("x-api-key", ""), bearer.strip() if scheme.lower() == "bearer" else ""]
        if not any(shown):
            raise ApiError(
                401,
                "no_api_key",
                "this server wants an API key: send Authorization: Bearer KEY, or X-API-Key: KEY",
            )
        if not any([self._knows(key) for key in shown]):  # a list, so that both are compared
            raise ApiError(401, "wrong_api_key", "the API key is not one of this server's")

    def _knows(self, key: str) -> bool:
        digest = _digest(key.encode("latin-1", "replace"), self.salt)
        return any([hmac.compare_digest(digest, known) for known in self.digests])


def _check(key: str, name: str) -> None:
    if len(key) < SHORTEST or not _PRINTABLE.fullmatch(key):
        raise RetrvError(
            f"{name} must be at least {SHORTEST} printable ASCII characters without spaces; "
            "make one with: openssl rand -hex 32"
        )


def _digest(key: bytes, salt: bytes) -> bytes:
    """Digest of fixed length: it hides a key's length, and memory holds no key."""
    return hashlib.blake2b(key, key=salt).digest()


def gather_keys(options: Iterable[str], file: Path | None, variables: Mapping[str, str]) -> Keys:
    """The keys of command line, file (one a line, # starts a comment) and environment together.

    Raises:
        RetrvError: the file cannot be read or is empty, or a key cannot be used.
    """
    named = [(key, f"API key {number} of --api-key") for number, key in enumerate(options, 1)]
    if file is not None:
        named += _keys_of(file)
    given = [key for key in re.split(r"[,\s]+", variables.get(VARIABLE, "")) if key]
    named += [(key, f"API key {number} of {VARIABLE}") for number, key in enumerate(given, 1)]
    for key, name in named:
        _check(key, name)
    return Keys.of(key for key, _ in named)


def _keys_of(file: Path) -> list[tuple[str, str]]:
    """The keys of a file, and what errors call them."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise RetrvError(f"cannot read the API keys in {file}: {error}") from error
    found = [
        (line, f"API key in line {number} of {file}")
        for number, line in enumerate(lines, 1)
        if line and not line.startswith("#")
    ]
    if not found:
        raise RetrvError(f"{file} has no API key; write one a line")
    return found
