"""Pictures that a request holds as strings: data URIs, bare base64, URLs and files."""

from __future__ import annotations

import binascii
import os
import re
import stat
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from PIL import Image

from retrv_r1.item_values import URL
from retrv_r1.serve.decoder import readable_formats
from retrv_r1.serve.refused import PictureRefused, malformed, over_bytes

Origin: TypeAlias = Literal["inline", "remote", "file"]

_PURE = re.compile(r"[A-Za-z0-9+/_\r\n-]+={0,2}\s*")
SHORTEST_PICTURE = 200
"""Characters above which a text of base64 may be a picture; words and keys are shorter."""

_BLANKS = b" \t\n\r\f\v"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
MOST_ESCAPES = 2**20
"""Percent-encoded bytes of a data URI; each takes some 60 bytes of memory while it is decoded."""
_NO_BLOCK = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)


def origin_of(value: str) -> Origin:
    """Where the bytes of a picture are.

    Raises:
        PictureRefused: a URL of another scheme.
    """
    start = value[:16].lower()
    if start.startswith(("http://", "https://")):
        return "remote"
    if start.startswith("file:"):
        return "file"
    if URL.match(value):
        raise malformed("pictures have http, https, file or data URLs, or are base64")
    return "inline"


def looks_like_picture(text: str) -> bool:
    """Whether a text is a picture's data URI or base64, which was probably meant as a picture."""
    if text[:64].lstrip()[:11].lower() == "data:image/":
        return True
    if len(text) <= SHORTEST_PICTURE or media_type(text) is None:
        return False
    return _PURE.fullmatch(text) is not None


def media_type(text: str) -> str | None:
    """Media type of base64 by the picture's first bytes; None where they are of no known picture.

    Args:
        text: base64 without a head.
    """
    try:
        plain = text[:40].encode("ascii").translate(_URL_SAFE, _BLANKS).rstrip(b"=")
        start = binascii.a2b_base64(plain[: len(plain) // 4 * 4], strict_mode=True)
        start = start[:16].ljust(16, b"\0")
    except ValueError:
        return None
    for name in readable_formats():
        accept = Image.OPEN[name][1]
        if accept is not None and accept(start):
            return Image.MIME.get(name, "application/octet-stream")
    return None


def as_address(value: str) -> str:
    """A picture as it can be shown: bare base64 becomes a data URI, all else stays."""
    if value[:5].lower() == "data:" or URL.match(value):
        return value
    plain = value.encode("ascii").translate(_URL_SAFE, _BLANKS).rstrip(b"=")
    padded = plain + b"=" * (-len(plain) % 4)
    return f"data:{media_type(value) or 'application/octet-stream'};base64,{padded.decode()}"


def inline_bytes(value: str, most: int) -> bytes:
    """The bytes of a data URI or of bare base64.

    Base64 may be of the URL-safe alphabet, have blanks, and lack its padding. Other characters are
    refused rather than skipped.

    Args:
        most: most bytes that are returned.
    Raises:
        PictureRefused: it is neither, or has more bytes.
    """
    if len(value) > 4 * most + 1024:  # even were it percent-encoded
        raise over_bytes(most)
    if value[:5].lower() != "data:":
        return _base64(value, most)
    head, comma, body = value.partition(",")
    if not comma:
        raise malformed("a data URI needs a comma before its content")
    if body.count("%") > MOST_ESCAPES:
        raise malformed("a data URI has too many percent-encoded bytes; send base64 as it is")
    if head.lower().rstrip().endswith(";base64"):
        text = unquote_to_bytes(body).decode("latin-1") if "%" in body else body
        return _base64(text, most)
    content = unquote_to_bytes(body)
    if len(content) > most:
        raise over_bytes(most)
    return content


def _base64(text: str, most: int) -> bytes:
    try:
        plain = text.encode("ascii").translate(_URL_SAFE, _BLANKS).rstrip(b"=")
        if len(plain) * 3 // 4 > most:
            raise over_bytes(most)
        if not plain:
            raise malformed("the picture is empty; pass a data URI, base64 or a URL")
        return binascii.a2b_base64(plain + b"=" * (-len(plain) % 4), strict_mode=True)
    except ValueError:  # also binascii's and Unicode's
        raise malformed("the picture is neither base64 nor a URL: send a data URI") from None


def file_bytes(value: str, root: Path, most: int) -> bytes:
    """The bytes of a ``file:`` URL of a regular file below ``root``.

    Links are followed first, and may not lead out. What is absent and what is outside get the same
    message, so that nobody can ask which files exist.

    Raises:
        PictureRefused: there is no such file below the root, or it is too large.
    """
    refused = PictureRefused(
        400, "picture_file", "no such picture file below the folder that the server may read"
    )
    try:
        parts = urlsplit(value)
        if parts.netloc not in ("", "localhost"):
            raise refused
        folder, path = root.resolve(strict=True), Path(url2pathname(parts.path))
        if not path.is_absolute() or not path.resolve(strict=True).is_relative_to(folder):
            raise refused
        path = path.resolve(strict=True)
        with open(path, "rb", opener=_open) as file:
            # Once more, for a link that was put there between the check and the opening.
            moved = not path.resolve(strict=True).is_relative_to(folder)
            if moved or not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise refused
            content = file.read(most + 1)
    except (OSError, ValueError, RuntimeError):  # a NUL in the name; links in a circle
        raise refused from None
    if len(content) > most:
        raise over_bytes(most)
    return content


def _open(path: str, flags: int) -> int:
    """Opens without waiting and without following a link; for ``open``, which then closes it."""
    return os.open(path, flags | _NO_BLOCK)
