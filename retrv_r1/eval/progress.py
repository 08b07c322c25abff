"""A progress bar on standard error, where that is a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

_T = TypeVar("_T")


def bar(steps: Iterable[_T], label: str, total: int) -> Iterable[_T]:
    """Yields the steps and shows how many of them are done."""
    console = Console(stderr=True, highlight=False)
    hidden = not console.is_terminal
    return track(steps, label, total=total, console=console, transient=True, disable=hidden)
