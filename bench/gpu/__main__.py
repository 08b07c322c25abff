"""Command line of the GPU benchmark: runs the parts, saves each row, prints tables."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from bench import machine, report
from bench.gpu import tables
from bench.gpu.context import Row
from bench.gpu.parts import PARTS, PartEnd, measure
from retrv_r1.files import write_whole
from retrv_r1.train.record import slug

FILE = "bench.json"
# Columns of the widest table; a narrower console would cut the numbers.
WIDTH = 180

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda",
    quick: Annotated[
        bool, typer.Option("--quick", help="Run everything at small sizes, as a rehearsal.")
    ] = False,
    minutes: Annotated[
        float, typer.Option(min=0.1, help="Time limit; no measurement starts after it.")
    ] = 4.5,
    out: Annotated[
        Path, typer.Option(help="Folder for results; each card gets a folder in it.")
    ] = Path("bench/results/gpu"),
    only: Annotated[
        str, typer.Option(help="Names of parts to run, separated by commas; all by default.")
    ] = "",
    commit: Annotated[
        str | None, typer.Option(help="Commit of the code, where git cannot tell.")
    ] = None,
) -> None:
    """Measure speed and memory on a GPU.

    Exits with 1 if something failed; its row says why. Running out of time is not a failure.
    """
    if device not in ("cpu", "cuda"):
        raise typer.BadParameter(f"device must be cpu or cuda, not {device}")
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("PyTorch finds no GPU: rehearse with --device cpu --quick")
    names = [name for name in only.split(",") if name]
    if unknown := set(names) - {part.name for part in PARTS}:
        known = ", ".join(part.name for part in PARTS)
        raise typer.BadParameter(f"no part {', '.join(sorted(unknown))}; choose from {known}")
    # Ceilings are always measured: everything else is compared with them.
    parts = [part for part in PARTS if not names or part.name in ("ceilings", *names)]
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    console = Console(width=max(Console().width, WIDTH))
    card = machine.card(device, commit)
    report.render_card(card, console)
    path = out / slug(card["name"]) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "suite": "gpu",
        "card": card,
        "quick": quick,
        "minutes": minutes,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "parts": [],
        "rows": [],
        "failed": 0,
    }

    def keep(news: Row | PartEnd) -> None:
        if isinstance(news, PartEnd):
            result["parts"].append(vars(news))
        else:
            result["rows"].append(news)
            if "ceilings" in news:
                card["ceilings"] = news["ceilings"]
        result["failed"] = sum(bool(row.get("failed")) for row in result["rows"])
        result["failed"] += sum(part["state"] == "failed" for part in result["parts"])
        write(path, result)
        console.print(tables.line(news), markup=False, highlight=False, soft_wrap=True)

    measure(parts, device, quick, 60 * minutes, keep)
    tables.render(result, console)
    console.print(f"written: {path}", highlight=False, soft_wrap=True)
    if result["failed"]:
        raise typer.Exit(1)


def write(path: Path, result: dict[str, Any]) -> None:
    """Replaces the report in one step, so that the file is complete at any moment."""
    write_whole(path, json.dumps(result, ensure_ascii=False, allow_nan=False) + "\n")


if __name__ == "__main__":
    app()
