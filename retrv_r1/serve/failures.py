"""What the errors of ranking mean to a client."""

from __future__ import annotations

import math

from retrv_engine import DeadlineExceeded, EngineDied, RequestTooLarge
from retrv_r1.serve.calls import EngineFailed, NotReady, QueueFull
from retrv_r1.serve.errors import ApiError
from retrv_r1.types import ItemError


def failure_of(error: Exception, deadline: float | None) -> ApiError | None:
    """The answer to a request whose ranking failed; None for a fault of ours.

    Args:
        deadline: seconds that a request has, for the message.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        return _later(429, "queue_full", "the queue is full; try again later", error.retry_after)
    if isinstance(error, NotReady):
        return _later(503, "not_ready", str(error), error.retry_after)
    if isinstance(error, TimeoutError | DeadlineExceeded):
        within = "" if deadline is None else f" of {deadline:g} s"
        return ApiError(
            504,
            "deadline_exceeded",
            f"the deadline{within} has passed; send fewer documents, mode fast or a budget_ms",
        )
    if isinstance(error, EngineFailed | EngineDied):
        return _later(503, "engine_failed", "the engine failed and restarts; try again", 1)
    if isinstance(error, RequestTooLarge):
        return ApiError(413, "max_prompt_rows", str(error))
    if isinstance(error, ItemError):
        return ApiError(400, "bad_item", str(error))
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
        return ApiError(400, "invalid_options", str(error), "retrv")
    return None


def _later(status: int, code: str, message: str, seconds: float) -> ApiError:
    return ApiError(status, code, message, retry_after=max(1, math.ceil(seconds)))
