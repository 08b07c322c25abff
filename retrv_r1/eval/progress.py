"""Progress bars on standard error, where that is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    track,
)

_T = TypeVar("_T")


def bar(steps: Iterable[_T], label: str, total: int) -> Iterable[_T]:
    """Yields the steps and shows how many of them are done."""
    console = Console(stderr=True, highlight=False)
    hidden = not console.is_terminal
    return track(steps, label, total=total, console=console, transient=True, disable=hidden)


@contextmanager
def counting(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar that a function advances by a number of steps; hidden as :func:`bar` is."""
    console = Console(stderr=True, highlight=False)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(label, total=total)
        yield lambda steps: progress.advance(task, steps)
