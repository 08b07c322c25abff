"""``retrv-r1 plan``: what a model would need on GPUs, from datasheets."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from retrv_r1.command.arguments import AsJson
from retrv_r1.command.shell import clear_errors, print_json, stdout
from retrv_r1.planning.cards import CARDS
from retrv_r1.planning.estimates import Assumptions, QueryPlan, query, training
from retrv_r1.planning.shapes import MODELS
from retrv_r1.types import RetrvError

KINDS = {
    "compressed, indexed": {"full": False, "indexed": True},
    "compressed": {"full": False},
    "full tokens": {"full": True},
}


def plan(
    model: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(MODELS)}; repeatable.")
    ] = None,
    card: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(CARDS)}; repeatable.")
    ] = None,
    k: Annotated[int, typer.Option(help="Candidates of a list.")] = 50,
    rows: Annotated[int, typer.Option(help="Rows of a candidate's picture.")] = 100,
    tokens: Annotated[int, typer.Option(help="Tokens of a chain of thought.")] = 150,
    inspections: Annotated[int, typer.Option(help="Candidates that a chain inspects.")] = 1,
    batch: Annotated[int, typer.Option(help="Chains that are decoded together.")] = 32,
    mfu: Annotated[float, typer.Option(help="Share of the peak that products reach.")] = 0.4,
    mbu: Annotated[float, typer.Option(help="Share of the bandwidth that decoding reaches.")] = 0.6,
    as_json: AsJson = False,
) -> None:
    """Estimate memory, operations, queries a second and hours of training on GPUs."""
    with clear_errors():
        try:
            assumed = Assumptions(
                k=k,
                rows=rows,
                tokens=tokens,
                inspections=inspections,
                batch=batch,
                mfu=mfu,
                mbu=mbu,
            )
        except ValueError as error:
            raise RetrvError(str(error)) from error
        report = estimated(_chosen(model, MODELS), _chosen(card, CARDS), assumed)
    if as_json:
        print_json(report)
    else:
        render(report)


def _chosen(names: list[str] | None, known: dict[str, Any]) -> dict[str, Any]:
    """The named ones, all by default."""
    for name in names or ():
        if name not in known:
            raise RetrvError(f"unknown {name!r}: choose one of {', '.join(known)}")
    return {name: known[name] for name in names or known}


def estimated(
    models: dict[str, Any], cards: dict[str, Any], assumed: Assumptions
) -> dict[str, Any]:
    """All that :func:`render` shows, as JSON values."""
    pairs = [(one, other) for one in models.values() for other in cards.values()]
    return {
        "estimate": True,
        "assumptions": asdict(assumed),
        "cards": {name: asdict(card) for name, card in cards.items()},
        "models": {
            name: {"name": one.name, "parameters": one.parameters, "bytes": 2 * one.parameters}
            for name, one in models.items()
        },
        "queries": [
            {"model": one.name, "card": card.name, "kind": kind}
            | _of(query(one, card, assumed, **options))
            for one, card in pairs
            for kind, options in KINDS.items()
        ],
        "training": [
            {"model": one.name, "card": card.name, **asdict(stage)}
            for one, card in pairs
            for stage in training(one, card, assumed)
        ],
    }


def _of(found: QueryPlan) -> dict[str, Any]:
    parts = ("tower", "compressor", "prefill", "decode")
    return asdict(found) | {
        "flops": dict(zip(parts, found.flops, strict=True)),
        "seconds": dict(zip(("before", "chain"), found.seconds, strict=True)),
    }


def render(report: dict[str, Any]) -> None:
    """Prints a plan as two tables, and what it assumes."""
    console = stdout()
    for one in report["models"].values():
        billions, size = one["parameters"] / 1e9, one["bytes"] / 1e9
        console.print(f"{one['name']}: {billions:.2f} billion parameters, {size:.1f} GB")
    queries = Table("model", "card", "candidates", title="A query (estimates)")
    for name in ("prompt rows", "TFLOP", "cache MB", "batch", "before s", "chain s", "queries/s"):
        queries.add_column(name, justify="right")
    for row in report["queries"]:
        work, seconds = sum(row["flops"].values()) / 1e12, row["seconds"]
        queries.add_row(
            row["model"],
            row["card"],
            row["kind"],
            str(row["prompt"]),
            f"{work:.2f}",
            f"{row['cache_bytes'] / 1e6:.0f}",
            str(row["batch"]),
            f"{seconds['before']:.3f}",
            f"{seconds['chain']:.2f}",
            f"{row['per_second']:.2f}" if row["batch"] else "does not fit",
        )
    console.print(queries)
    stages = Table("model", "card", "stage", title="Training on one card (estimates)")
    for name in ("GB", "fits", "EFLOP", "hours"):
        stages.add_column(name, justify="right")
    for row in report["training"]:
        stages.add_row(
            row["model"],
            row["card"],
            row["stage"],
            f"{row['bytes'] / 1e9:.1f}",
            "yes" if row["fits"] else "no",
            f"{row['flops'] / 1e18:.1f}",
            f"{row['hours']:.1f}",
        )
    console.print(stages)
    console.print("Nothing of this was measured. It assumes:")
    for name, value in report["assumptions"].items():
        console.print(f"  {name} = {value}")
    for card in report["cards"].values():
        console.print(
            f"  {card['name']}: {card['tflops']} TFLOP/s, {card['bandwidth']} GB/s (datasheet)"
        )
