"""``retrv-r1 data chains``: chains of thought by another model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from retrv_r1.command.arguments import AsJson
from retrv_r1.command.shell import echo, print_json
from retrv_r1.types import RetrvError

if TYPE_CHECKING:
    from retrv_r1.teaching.journal import Totals

_LINE_EVERY = 100
"""Lists between two lines of progress where no terminal shows a bar."""


def chains(
    lists: Annotated[Path, typer.Argument(metavar="LISTS", help="File of `data lists`.")],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="File of the chains; a killed run goes on in it.")
    ],
    sources: Annotated[
        list[Path],
        typer.Option("--data", help="Folder of a data set that lists are of; repeatable."),
    ],
    url: Annotated[str, typer.Option(help="Address of an OpenAI-compatible API, often …/v1.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Name of the model there.")],
    key_variable: Annotated[
        str, typer.Option(metavar="NAME", help="Environment variable with the API key.")
    ] = "OPENAI_API_KEY",
    together: Annotated[int, typer.Option(min=1, help="Most requests in flight.")] = 8,
    tries: Annotated[int, typer.Option(min=1, help="Replies asked for until one is right.")] = 1,
    retries: Annotated[int, typer.Option(min=0, help="Repeats of a request that fails.")] = 6,
    seconds: Annotated[float, typer.Option(min=1, help="Time limit of a request.")] = 180.0,
    temperature: Annotated[float, typer.Option(min=0, help="Temperature of replies.")] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a reply.")] = 2048,
    side: Annotated[
        int, typer.Option(min=16, help="Pixels to which a picture's sides are shrunk.")
    ] = 448,
    prices: Annotated[
        str, typer.Option(metavar="IN,OUT", help="Prices of a million tokens read, and written.")
    ] = "0,0",
    limit: Annotated[int | None, typer.Option(min=1, help="Lists to ask about.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order of candidates.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Have a model write chains of thought about lists; only right ones are taken."""
    from retrv_r1.teaching.asking import Teacher
    from retrv_r1.teaching.writing import write_chains

    paid = _prices(prices)
    teacher = Teacher(
        url=url,
        model=model,
        key=os.environ.get(key_variable),
        together=together,
        tries=tries,
        retries=retries,
        seconds=seconds,
        temperature=temperature,
        max_tokens=max_tokens,
        side=side,
    )
    with _Shown(paid) as shown:
        totals = write_chains(
            sources, lists, out, teacher, seed=seed, limit=limit, told=shown.update
        )
    if as_json:
        print_json(_report(totals, paid) | {"out": str(out)})
    else:
        echo(f"{out}: {_line(totals, paid)}")
    if not totals.taken:
        raise RetrvError(
            f"no chain was right; {out} has the replies that were not taken, and the reasons"
        )


class _Shown:
    """Progress on standard error: a bar on a terminal, else a line now and then."""

    def __init__(self, prices: tuple[float, float]) -> None:
        self.prices, self.console = prices, Console(stderr=True, highlight=False)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        hidden = not self.console.is_terminal
        self.bar = Progress(
            *columns, TimeRemainingColumn(), console=self.console, transient=True, disable=hidden
        )
        self.task = self.bar.add_task("asking", total=None)

    def __enter__(self) -> _Shown:
        self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()

    def update(self, done: int, of: int, totals: Totals) -> None:
        said = _line(totals, self.prices)
        self.bar.update(self.task, completed=done, total=of, description=said)
        if not self.console.is_terminal and (done == of or done % _LINE_EVERY == 0):
            self.console.print(f"{done} of {of} lists: {said}", soft_wrap=True)


def _report(totals: Totals, prices: tuple[float, float]) -> dict[str, Any]:
    return {
        "taken": totals.taken,
        "rejected": dict(totals.rejected),
        "tokens": {"read": totals.read, "written": totals.written},
        "cost": totals.cost(prices),
    }


def _line(totals: Totals, prices: tuple[float, float]) -> str:
    parts = [f"{totals.taken} chains"]
    parts += [f"{count} {why}" for why, count in totals.rejected.most_common()]
    parts.append(f"{totals.read:,} + {totals.written:,} tokens")
    if any(prices):
        parts.append(f"cost {totals.cost(prices):.2f}")
    return ", ".join(parts)


def _prices(text: str) -> tuple[float, float]:
    try:
        read, written = map(float, text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no pair like 0.5,1.5", param_hint="--prices"
        ) from None
    return read, written
