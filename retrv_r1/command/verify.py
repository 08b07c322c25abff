"""The command ``verify``: the same scores from every engine, dialect, batch and cache."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer
from rich.table import Table

from retrv_r1.command.arguments import AsJson, DeviceName, ModelName
from retrv_r1.command.shell import clear_errors, echo, print_json, stdout
from retrv_r1.types import EngineName, RetrvError

if TYPE_CHECKING:
    from retrv_r1.verify.comparing import Comparison

KEY = "RETRV_API_KEY"


def verify(
    engine: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ENGINE",
            help="Engine to compare: local, plain or sglang; may be repeated. Default: local, "
            "without --url.",
        ),
    ] = None,
    url: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help=f"Running server to compare, in every dialect; may be repeated. Its API key is "
            f"read from {KEY}.",
        ),
    ] = None,
    model: ModelName = "tiny",
    write: Annotated[
        bool,
        typer.Option("--write", help="Write the golden scores of a checkpoint, with engine plain."),
    ] = False,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            min=1, metavar="N", help="Lists at once; may be repeated. Default: 1, 8 and 64."
        ),
    ] = None,
    bound: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="X",
            help="Largest difference of a score. Default: 1e-5, and 1e-4 for sglang.",
        ),
    ] = None,
    device: DeviceName = None,
    as_json: AsJson = False,
) -> None:
    """Compare scores, ranks and reasoning with the golden ones that a checkpoint ships.

    All is done in float32. Golden scores are those of the plain engine, one list at a time.
    Exit status 1: a score is out of bounds, or a rank or a reasoning is another.
    """
    with clear_errors():
        if write:
            _write(model, engine, url)
            return
        engines = _engines(engine or ([] if url else ["local"]))
        found = list(_compare(model, engines, url or [], batch, bound, device))
    from retrv_r1.verify.comparing import all_passed

    passed = all_passed(found)
    if as_json:
        rows = [asdict(one) | {"passed": one.passed} for one in found]
        print_json({"model": model, "passed": passed, "comparisons": rows})
    else:
        _print(found)
    if not passed:
        raise typer.Exit(1)


def _engines(names: Sequence[str]) -> list[EngineName]:
    """Names of engines, checked; typer has no choices for a repeated option."""
    known = get_args(EngineName)
    for name in names:
        if name not in known:
            raise RetrvError(f"--engine must be one of {', '.join(known)}, not {name}")
    return [cast(EngineName, name) for name in names]


def _write(model: str, engine: list[str] | None, url: list[str] | None) -> None:
    if engine or url:
        raise RetrvError("--write takes no --engine and no --url: the plain engine writes")
    from retrv_r1.eval.progress import counting
    from retrv_r1.verify.golden import cases, write_golden

    with counting(f"ranking lists with {model}", len(cases())) as ranked:
        path = write_golden(model, ranked=ranked)
    echo(f"written: {path}")


def _compare(
    model: str,
    engines: Sequence[EngineName],
    urls: Sequence[str],
    batches: Sequence[int] | None,
    bound: float | None,
    device: str | None,
) -> Iterator[Comparison]:
    from transformers.utils.logging import disable_progress_bar

    from retrv_r1.eval.progress import counting
    from retrv_r1.verify.comparing import BOUNDS
    from retrv_r1.verify.dialects import FORMS
    from retrv_r1.verify.engines import BATCHES, compare_engine
    from retrv_r1.verify.golden import cases, read_golden
    from retrv_r1.verify.server import compare_server

    disable_progress_bar()
    golden, asked, sizes = read_golden(model), cases(), batches or BATCHES
    for name in engines:
        rounds = 2 * len(sizes)
        label = f"ranking lists with the engine {name}"
        with counting(label, rounds * len(asked)) as ranked:
            limit = BOUNDS[name] if bound is None else bound
            yield from compare_engine(
                name,
                model,
                golden,
                asked,
                batches=sizes,
                bound=limit,
                device=device,
                ranked=ranked,
            )
    for url in urls:
        rounds = len(sizes) - 1 + len(FORMS)
        with counting(f"ranking lists at {url}", rounds * len(asked)) as ranked:
            limit = BOUNDS["local"] if bound is None else bound
            key = os.environ.get(KEY)
            yield from compare_server(
                url, golden, asked, batches=sizes, bound=limit, key=key, ranked=ranked
            )


def _print(comparisons: Sequence[Comparison]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("compared", "cache"):
        table.add_column(title)
    for title in ("at once", "rankings", "worst", "bound", "other ranks", "other reasoning"):
        table.add_column(title, justify="right")
    table.add_column("")
    for one in comparisons:
        unseen = f" ({one.silent} not shown)" if one.silent else ""
        table.add_row(
            one.what,
            one.cache,
            str(one.batch),
            str(one.cases),
            f"{one.worst:.1e}",
            f"{one.bound:.0e}",
            str(len(one.other_ranks)),
            f"{len(one.other_reasoning)}{unseen}",
            "[green]same[/]" if one.passed else f"[red]differs: {_where(one)}[/]",
        )
    stdout().print(table)


def _where(one: Comparison) -> str:
    """A ranking to look at first."""
    if one.worst > one.bound:
        return one.worst_case
    return (one.other_ranks or one.other_reasoning)[0]
