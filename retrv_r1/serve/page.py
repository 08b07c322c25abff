"""The page at ``/``: static files with a strict policy, served from memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

_FOLDER = Path(__file__).parent / "page"
_SHARED_STYLE = Path(__file__).parent.parent / "report" / "page.css"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".md": "text/markdown; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
# Nothing from elsewhere, nothing inline, and no markup made of strings.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    # Kept, but asked for each time: a page of another version than its server would fail oddly.
    "Cache-Control": "no-cache",
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True)
class _File:
    """A file of the page: its bytes, media type and entity tag."""

    content: bytes
    media_type: str
    tag: str

    @classmethod
    def read(cls, path: Path) -> _File:
        content = path.read_bytes()
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        return cls(content, _TYPES[path.suffix], tag)


def mount_page(app: FastAPI) -> None:
    """Adds the page: ``GET /``, and its files under ``/page/``.

    They need no API key, because they hold nothing of the server; the page asks for the key when
    a request is refused. Their headers forbid all that is not from this server.
    """
    files = {
        path.relative_to(_FOLDER).as_posix(): _File.read(path)
        for path in sorted(_FOLDER.rglob("*"))
        if path.suffix in _TYPES
    }
    files["report.css"] = _File.read(_SHARED_STYLE)
    index = files.pop("index.html")

    async def root(request: Request) -> Response:
        return _answer(request, index)

    async def file(request: Request) -> Response:
        return _answer(request, files.get(request.path_params["name"]))

    for path, endpoint in (("/", root), ("/page/{name:path}", file)):
        app.add_route(path, endpoint, methods=["GET", "HEAD"], include_in_schema=False)


def _answer(request: Request, file: _File | None) -> Response:
    from starlette.responses import PlainTextResponse, Response

    if file is None:
        return PlainTextResponse("the page has no such file", status_code=404, headers=_HEADERS)
    headers = _HEADERS | {"ETag": file.tag}
    known = request.headers.get("if-none-match", "")
    if file.tag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
