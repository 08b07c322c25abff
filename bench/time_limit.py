"""A time limit for calls that may compile for minutes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class _TimeIsUp(BaseException):
    """Raised by an alarm; not an Exception, which compilers would catch."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError after some seconds inside; 0 for no limit.

    Works in the main thread only; a call into compiled code is not interrupted.
    """
    if not seconds:
        yield
        return

    def stop(*_: object) -> None:
        raise _TimeIsUp

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _TimeIsUp:
        raise TimeoutError(f"not done within {seconds:.0f} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
