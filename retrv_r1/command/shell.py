"""What all commands share: errors of one line, a spinner, output for terminals and pipes."""

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

TRAINING_PACKAGES = ("accelerate", "matplotlib")
"""Optional packages whose absence no other module reports."""


@contextmanager
def clean_ending() -> Iterator[None]:
    """Ends a command with one line for an error that its caller can fix, for Ctrl-C, and silently
    for a closed pipe. Other errors are ours and keep their traceback."""
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # What is still buffered has no reader: let the flush at exit go nowhere, silently.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from None
    except (RetrvError, OSError, ModuleNotFoundError) as error:
        message = _message(error)
        if message is None:
            raise
        from retrv_r1.report.view import printable

        line = Text(f"error: {printable(' '.join(message.split()))}", "red")
        Console(stderr=True, soft_wrap=True, highlight=False).print(line)
        raise typer.Exit(2) from error


def _message(error: Exception) -> str | None:
    """What is wrong and how to fix it; None if the caller cannot."""
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package not in TRAINING_PACKAGES:
            return None
        return f"training needs the package {package}: pip install 'retrv-r1[train]'"
    if isinstance(error, OSError) and not isinstance(error, RetrvError):
        place = f"cannot use {error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}; name a path that can be read and written"
    return str(error)


class Group(TyperGroup):
    """All commands end as :func:`clean_ending` says."""

    def invoke(self, ctx: Any) -> Any:
        with clean_ending():
            return super().invoke(ctx)


class PipeConsole(Console):
    """A console that leaves a closed pipe to :func:`clean_ending`, as every other write does."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turns errors about arguments and engines into :class:`RetrvError`, which is one line."""
    try:
        yield
    except RetrvError:
        raise
    except Exception as error:
        from retrv_engine import EngineDied, EngineMissing

        if isinstance(error, ValueError | EngineDied | EngineMissing):
            raise RetrvError(str(error)) from error
        raise


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
