"""Command line of the benchmarks: runs a suite, prints tables, then one line of JSON."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import harness, machine, plots, report
from bench.device import Device
from bench.gpu import tables
from bench.harness import Suite
from bench.suites import engine, kernels
from retrv_kernels import gpu


class Name(StrEnum):
    kernels = "kernels"
    prefill = "prefill"
    decode = "decode"
    rerank = "rerank"
    rollout = "rollout"
    engines = "engines"


ENGINE_SUITES: Mapping[Name, Callable[[str, bool], Suite]] = {
    Name.prefill: engine.prefill,
    Name.decode: engine.decode,
    Name.rerank: engine.rerank,
    Name.rollout: engine.rollout,
    Name.engines: engine.engines,
}
BUDGET = {False: 2.0, True: 1.0}
"""Seconds of calls in a trial, by ``quick``."""
# Columns of the widest table; a narrower console would cut the numbers.
WIDTH = 200

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    suite: Annotated[Name | None, typer.Option(help="Suite to measure.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure a few shapes, in two to three minutes.")
    ] = False,
    device: Annotated[
        str, typer.Option(help="cpu or cuda; by default cuda if there is a GPU.")
    ] = "",
    only: Annotated[str, typer.Option(help="Text that op or name of a trial must contain.")] = "",
    saved: Annotated[
        Path | None, typer.Option("--from", help="Saved report to show instead of measuring.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--json", help="File for the report.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--plots", help="Folder for charts as PNG.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a bench.gpu report as Markdown.")
    ] = False,
) -> None:
    """Measure a suite: print the machine, tables, and the report as one line of JSON.

    Exits with 1 if an implementation failed its check.
    """
    console = _console()
    if saved is None and suite is not None:
        result = measure(suite, _device(device), quick, only, console)
    elif saved is not None and suite is None:
        result = _read(saved)
        if result["suite"] == "gpu":
            show_gpu(result, markdown, console)
            return
        report.render_card(result["card"], console)
    else:
        raise typer.BadParameter("give either --suite or --from")
    report.render(result, console)
    line = json.dumps(result, ensure_ascii=False, allow_nan=False)
    if output is not None:
        output.write_text(line + "\n", encoding="utf-8")
    if folder is not None:
        for path in plots.draw(result, folder):
            console.print(f"drawn: {path}", highlight=False, soft_wrap=True)
    typer.echo(line)
    if result["failed"]:
        raise typer.Exit(1)


def show_gpu(result: dict[str, Any], markdown: bool, console: Console) -> None:
    """Prints a saved report of :mod:`bench.gpu`."""
    if markdown:
        typer.echo(tables.markdown(result))
    else:
        report.render_card(result["card"], console)
        tables.render(result, console)
    if result["failed"]:
        raise typer.Exit(1)


def measure(suite: Name, device: str, quick: bool, only: str, console: Console) -> dict[str, Any]:
    """Runs a suite's trials; returns the report."""
    if os.environ.get(gpu.INTERPRETER) == "1":
        raise typer.BadParameter(
            f"unset {gpu.INTERPRETER}: interpreted Triton kernels cannot be timed"
        )
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # graph breaks in peers
    # A pool of compilers would run at the same time as timed calls.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    card = machine.card(device)
    report.render_card(card, console)
    measured = Device.of(device)
    measured.warm()
    probe = machine.Probe(device)
    probe.measure()
    ceilings = probe.ceilings()
    if suite is Name.kernels:
        rate = ceilings.get("gemm bfloat16", ceilings["gemm"])["median"]
        made = kernels.suite(device, rate, quick)
    else:
        made = ENGINE_SUITES[suite](device, quick)
    trials = [trial for trial in made.trials if only in f"{trial.op} {trial.name}"]
    if not trials:
        raise typer.BadParameter(f"no trial has {only!r} in its op or name")
    rows: list[dict[str, Any]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    errors = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=errors, transient=True) as progress:
        task = progress.add_task("", total=len(trials))
        for trial in trials:
            progress.update(task, description=f"{trial.op}: {trial.name}, {trial.dtype}")
            probe.measure()
            own = measured if device == "cuda" else None
            rows += harness.run(trial, BUDGET[quick], evict=probe.evict, device=own)
            measured.free_unused()  # the trial's tensors, before the next makes its own
            progress.advance(task)
    probe.measure()
    return report.build(suite, card | {"ceilings": probe.ceilings()}, rows, made.notes)


def _read(path: Path) -> dict[str, Any]:
    """A saved report; anything else ends in one line."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if {"suite", "card", "failed"} <= set(result):
            return result
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path} cannot be read: {error}") from error
    raise typer.BadParameter(f"{path} is not a report of bench.run or bench.gpu")


def _device(asked: str) -> str:
    if asked not in ("", "cpu", "cuda"):
        raise typer.BadParameter(f"device must be cpu or cuda, not {asked}")
    if asked == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("PyTorch finds no GPU: use --device cpu")
    return asked or ("cuda" if torch.cuda.is_available() else "cpu")


def _console() -> Console:
    return Console(width=max(Console().width, WIDTH))


if __name__ == "__main__":
    app()
