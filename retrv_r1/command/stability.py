"""The command ``stability``: measures how much answers depend on wording and on order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer
from rich.console import Console
from rich.table import Table

from retrv_r1.command.arguments import AsJson, DeviceName, ModelName, Split
from retrv_r1.command.shell import print_json, stdout
from retrv_r1.types import Mode

if TYPE_CHECKING:
    from retrv_r1.eval.stability import NamedList, Stability
    from retrv_r1.rerank.reranker import Reranker


def stability(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DATASET|DIR",
            help="Data set in M-BEIR's layout, or folder of pictures named by their files.",
        ),
    ],
    model: ModelName = "tiny",
    split: Annotated[Split, typer.Option(help="Split of the data set.")] = "val",
    cells: Annotated[
        list[str] | None,
        typer.Option("--cell", metavar="NAME", help="Cell; may be given several times."),
    ] = None,
    k: Annotated[int, typer.Option("--k", min=2, help="Candidates of a data set's list.")] = 50,
    limit: Annotated[int | None, typer.Option(min=1, help="Lists, of a data set a cell.")] = None,
    modes: Annotated[
        list[str] | None,
        typer.Option("--mode", metavar="MODE", help="reason or fast; default: both."),
    ] = None,
    shuffles: Annotated[int, typer.Option(min=0, help="Shuffles of each list.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the sample and of the orders.")] = 0,
    device: DeviceName = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write as well.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how much answers depend on how a query is worded and how candidates are ordered.

    Each list is asked for by its bare name in six wordings, then in shuffled orders.
    """
    asked = cast("tuple[Mode, ...]", tuple(modes or reversed(get_args(Mode))))
    if unknown := set(asked) - set(get_args(Mode)):
        raise typer.BadParameter(f"{sorted(unknown)[0]!r} is neither reason nor fast")
    from retrv_r1.data.icons.wording import SIX, six
    from retrv_r1.eval.stability import measure_stability, to_json
    from retrv_r1.files import write_whole

    reranker, lists = _lists(source, model, split, cells or (), k, limit, seed, device)
    with reranker:
        found = measure_stability(
            reranker, lists, frames=SIX, reword=six, modes=asked, shuffles=shuffles, seed=seed
        )
    values = to_json(model, source.resolve().name, found)
    if out is not None:
        write_whole(out, json.dumps(values, ensure_ascii=False, indent=2) + "\n")
    if as_json:
        print_json(values)
    else:
        render(found, stdout())


def _lists(
    source: Path,
    model: str,
    split: str,
    cells: Sequence[str],
    k: int,
    limit: int | None,
    seed: int,
    device: str | None,
) -> tuple[Reranker, list[NamedList]]:
    """The model, and the lists of a data set or of a folder of pictures."""
    from retrv_r1.command.sources import read_candidates
    from retrv_r1.devices import device_of
    from retrv_r1.eval.models import Models
    from retrv_r1.eval.settings import EvalSettings
    from retrv_r1.eval.stability import lists_of_cells, lists_of_pictures
    from retrv_r1.rerank.reranker import Reranker

    if not (source / "query").is_dir():
        pictures = lists_of_pictures(list(read_candidates([str(source)])))
        reranker = Reranker.from_pretrained(model, device=device, window=max(k, 2))
        return reranker, pictures[:limit]
    settings = EvalSettings(k=(k,), limit=limit, seed=seed, device=str(device_of(device)))
    models = Models(model, settings)
    return models.reranker, lists_of_cells(source, models, settings, split, cells)


def render(found: Sequence[Stability], console: Console) -> None:
    """Prints a table of wordings, and a line for each mode."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("wording", style="bold")
    for one in found:
        for name in ("R@1", "score", "changed"):
            table.add_column(f"{one.mode}, {name}", justify="right")
    for rows in zip(*(one.wordings for one in found), strict=True):
        cells = [f"{number:.2f}" for row in rows for number in (row.recall, row.score, row.differs)]
        table.add_row(rows[0].wording, *cells)
    console.print(table)
    for one in found:
        said = [f"{one.mode}, {one.lists} lists"]
        if one.reworded is not None:
            said.append(f"{_percent(one.reworded)} get other answers in other wordings")
        if one.reordered is not None and one.reordered_lists is not None:
            said.append(
                f"{one.shuffles} shuffles change {_percent(one.reordered)} of answers, in "
                f"{_percent(one.reordered_lists)} of lists"
            )
        console.print("; ".join(said), highlight=False)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
