"""What all commands share: errors of one line, a spinner, output for terminals and pipes."""

from __future__ import annotations

import io
import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from retrv_kernels.extras import install_command
from retrv_r1.types import RetrvError

PIPE_WIDTH = 240
"""Columns where no terminal says how many it has."""

TRAINING_PACKAGES = ("accelerate", "matplotlib")
"""Optional packages whose absence no other module reports."""


@contextmanager
def clean_ending() -> Iterator[None]:
    """Ends a command with one line for an error that its caller can fix, for output that cannot be
    written and for Ctrl-C, and silently for a closed pipe. Other errors are ours and keep their
    traceback."""
    _replace_what_output_lacks()
    if sys.stdout is None:
        _say("error: standard output is closed; redirect it, to /dev/null if it is not needed")
        raise typer.Exit(1)
    try:
        with _short_warnings():
            yield
        with _output():
            sys.stdout.flush()
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(130) from None
    except BrokenPipeError:
        _drop_output()
        raise typer.Exit(141) from None
    except (RetrvError, OSError, ModuleNotFoundError, FloatingPointError) as error:
        message = _message(error)
        if message is None:
            raise
        _say(f"error: {message}")
        raise typer.Exit(1 if isinstance(error, OutputError) else 2) from error


class OutputError(RetrvError):
    """Standard output cannot be written."""


@contextmanager
def _output() -> Iterator[None]:
    """Around writing to standard output: tells its errors from those of other files."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        _drop_output()
        raise OutputError(
            f"cannot write to standard output: {error.strerror}; redirect it to another place"
        ) from error


def _replace_what_output_lacks() -> None:
    """Has characters that standard output cannot encode replaced by question marks."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _drop_output() -> None:
    """Lets the flush at exit go nowhere: what is still buffered cannot be written."""
    with suppress(OSError):  # standard output of a test has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(line: str) -> None:
    """Prints one line to standard error, if there is one."""
    from retrv_r1.report.view import printable

    text = Text(
        printable(" ".join(line.split())), "yellow" if line.startswith("warning") else "red"
    )
    with suppress(OSError):
        Console(stderr=True, soft_wrap=True, highlight=False).print(text)


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Shows a warning as one line without a place in the code."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _say(f"warning: {message}")
        yield


def _message(error: Exception) -> str | None:
    """What is wrong and how to fix it; None if the caller cannot."""
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package not in TRAINING_PACKAGES:
            return None
        return f"training needs the package {package}: {install_command('train')}"
    if isinstance(error, OSError) and not isinstance(error, RetrvError):
        place = f"cannot use {error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}; name a path that can be read and written"
    return str(error)


class Group(TyperGroup):
    """All commands end as :func:`clean_ending` says."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Also for what is printed without a command, such as help."""
        _replace_what_output_lacks()
        try:
            with _output():
                return super().main(*args, **kwargs)
        except OutputError as error:
            _say(f"error: {error}")
            sys.exit(1)

    def invoke(self, ctx: Any) -> Any:
        with clean_ending():
            return super().invoke(ctx)


class PipeConsole(Console):
    """A console that leaves errors of its file to :func:`clean_ending`, as all writes do."""

    def print(self, *objects: Any, **options: Any) -> None:
        with _output():
            super().print(*objects, **options)

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
    spinner = "dots" if console.encoding.startswith("utf") else "line"
    with console.status(Text(f"{what} …", "dim"), spinner=spinner):
        yield


def stdout() -> Console:
    """Where results are printed: as wide as the terminal, or wide enough for a pipe."""
    piped = None if sys.stdout.isatty() else PIPE_WIDTH
    return PipeConsole(width=piped, highlight=False)


def print_json(value: Any) -> None:
    """Prints a value as JSON, and nothing else."""
    escape = not (sys.stdout.encoding or "").lower().startswith("utf")  # nothing is replaced
    echo(json.dumps(value, ensure_ascii=escape, allow_nan=False, indent=2))


def echo(line: str) -> None:
    """Prints a line to standard output."""
    with _output():
        typer.echo(line)
