"""``retrv-r1 data lists``: lists of candidates from a first stage, for training and teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from retrv_r1.command.arguments import AsJson
from retrv_r1.command.shell import echo, print_json


def lists(
    root: Annotated[Path, typer.Argument(metavar="DIR", help="Data set in M-BEIR's layout.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File of lists to write.")],
    candidates: Annotated[
        Path | None,
        typer.Option(help="TREC run or LamRA's files of a first stage, or a folder of them."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Or a checkpoint whose first stage searches."),
    ] = None,
    split: Annotated[Literal["train", "val"], typer.Option(help="Split of the queries.")] = "train",
    cells: Annotated[
        list[str] | None, typer.Option("--cell", help="Only this cell; repeatable.")
    ] = None,
    k: Annotated[int, typer.Option(min=2, help="Candidates of a list.")] = 50,
    wanted: Annotated[
        Literal["all", "hard"],
        typer.Option(help="hard: only lists whose first candidate is wrong."),
    ] = "hard",
    limit: Annotated[int | None, typer.Option(min=1, help="Lists of each cell.")] = None,
    device: Annotated[str, typer.Option(help="Device of --model.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Seed of the order of queries.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Write what a first stage finds for queries: lists to train on, the hard ones by default."""
    from collections import Counter

    from retrv_r1.data.lists import ListsError, write_lists
    from retrv_r1.eval.hard_lists import Choice, choose_cells, make_lists

    if (candidates is None) == (model is None):
        raise ListsError("name either --candidates or --model: one first stage is needed")
    choice = Choice(k, wanted, limit, seed)
    counts: dict[str, Counter[str]] = {}
    found = choose_cells(root, split, cells or ())
    source = {"runs": candidates, "model": model or "", "device": device}
    total = write_lists(out, make_lists(root, found, choice, counts, **source))  # type: ignore[arg-type]
    if as_json:
        known = {name: dict(count) for name, count in counts.items()}
        print_json({"out": str(out), "lists": total, "cells": known})
        return
    for name, count in counts.items():
        echo(f"{name}: " + ", ".join(f"{n} {what}" for what, n in count.items()))
    echo(f"{out}: {total} lists")
