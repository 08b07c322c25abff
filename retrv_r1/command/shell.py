"""What all commands share: clean endings, a spinner, output for terminals and pipes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from retrv_r1.types import RetrvError

PIPE_WIDTH = 240
"""Columns where no terminal says how many it has."""


@contextmanager
def clean_ending() -> Iterator[None]:
    """Ends with one clean line where the caller, Ctrl-C or a closed pipe is the cause."""
    try:
        yield
        sys.stdout.flush()
    except RetrvError as error:
        from retrv_r1.report.view import printable

        line = Text(f"error: {printable(' '.join(str(error).split()))}", "red")
        Console(stderr=True, soft_wrap=True, highlight=False).print(line)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # What is still buffered has no reader: let the flush at exit go nowhere, silently.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from None


class Group(TyperGroup):
    """All commands end as :func:`clean_ending` says."""

    def invoke(self, ctx: Any) -> Any:
        with clean_ending():
            return super().invoke(ctx)


class PipeConsole(Console):
    """A console whose closed pipe is the group's business, like that of every other write."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


@contextmanager
def usage_errors() -> Iterator[None]:
    """Shows a called function's complaint about its arguments the way typer shows its own."""
    try:
        yield
    except RetrvError:
        raise
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@contextmanager
def engine_errors() -> Iterator[None]:
    """Shows what became of an engine as one line, with the mend that it names."""
    from retrv_engine import EngineDied, EngineMissing

    try:
        yield
    except (EngineDied, EngineMissing) as error:
        raise RetrvError(str(error)) from error


@contextmanager
def status(what: str) -> Iterator[None]:
    """A spinner while something takes its time; nothing unless a terminal shows stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(Text(f"{what} …", "dim")):
        yield


def stdout() -> Console:
    """Where results are printed: as wide as the terminal, or wide enough for a pipe."""
    piped = None if sys.stdout.isatty() else PIPE_WIDTH
    return PipeConsole(width=piped, highlight=False)


def print_json(value: Any) -> None:
    """Prints a value as JSON, and nothing else."""
    typer.echo(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2))
