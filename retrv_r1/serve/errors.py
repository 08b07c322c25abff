"""Errors that answer a request: a status, a code that programs read, and what to change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    415: "invalid_request_error",
    421: "invalid_request_error",
    422: "invalid_request_error",
    429: "overloaded_error",
    499: "client_closed_request",
    503: "unavailable_error",
    504: "timeout_error",
}
"""The class of each status, as object-style clients read it from ``error.type``."""


@dataclass(eq=False)  # not frozen: a context manager sets the traceback of what passes it
class ApiError(Exception):
    """A request that gets an error for an answer.

    Args:
        status: HTTP status.
        code: name of the error for programs, such as ``too_many_documents``.
        message: what is wrong and how to fix it, in one line, without the caller's own content.
        param: place in the body that is wrong, such as ``documents[3].image``.
        retry_after: seconds to wait before the next try.
    """

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after: int | None = None

    def __str__(self) -> str:
        return self.message

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the error."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="retrv-r1"'
        return headers

    @property
    def type(self) -> str:
        """Class of the error; statuses without one of their own are the server's fault."""
        return TYPES.get(self.status, "server_error")


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A value of the body that cannot be used. Dialects choose between 400 and 422."""
    return ApiError(400, code, message, param)


def malformed(message: str) -> ApiError:
    """A body that is no JSON object."""
    return ApiError(400, "malformed_body", message)


def over_limit(
    limit: str,
    most: int,
    found: int | None,
    what: str,
    remedy: str,
    param: str | None = None,
    *,
    has: str = "",
) -> ApiError:
    """A request larger than the server takes.

    Args:
        limit: name of the limit, as settings and ``/info`` call it; it is the error's code.
        most: the limit's value.
        found: what the request has, where that is known.
        what: what is counted, in the plural.
        remedy: what the caller can do.
        param: place in the body; None for the body itself.
        has: start of the message where ``found`` is not known.
    """
    if found is not None:
        has = f"{found} {what} are more than "
    return ApiError(
        413, limit, f"{has}the limit {limit} of {most} {what}; {remedy}, or {raised(limit)}", param
    )


def raised(limit: str) -> str:
    """What the owner of the server can do about a limit."""
    return f"start the server with --limit {limit}=N"


def superset_body(error: ApiError, request_id: str) -> dict[str, Any]:
    """The error in the form that all object-style clients read."""
    inner: Mapping[str, Any] = {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }
    return {
        "error": inner,
        "message": error.message,
        "detail": error.message,
        "object": "error",
        "id": request_id,
    }
