"""A ranking and its costs as text, for a terminal or a pipe."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from retrv_r1.report.view import (
    Step,
    display_name,
    percent,
    printable,
    reasoning_steps,
    seconds,
    timing_shares,
)
from retrv_r1.types import RankedItem, RankedResults

_BLOCKS = " ▏▎▍▌▋▊▉█"
_BAR = 10


def print_ranking(results: RankedResults, console: Console, *, candidates: int) -> None:
    """Prints the ranking, the reasoning, and the costs.

    Args:
        candidates: number of candidates, which may be more than the ranking shows.
    """
    plain = not console.encoding.lower().startswith("utf")
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, pad_edge=False)
    marks = [_mark(row, results.answer) for row in results]
    table.add_column("#", justify="right", style="bold", no_wrap=True)
    table.add_column("score", no_wrap=True)
    table.add_column("candidate")  # shortened on a narrow terminal
    table.add_column("", no_wrap=True)
    for rank, (row, mark) in enumerate(zip(results, marks, strict=True), start=1):
        answer = row.index == results.answer
        bar = Text(_bar(row.score, plain), "green" if answer else "cyan")
        score = Text.assemble(f"{row.score:.3f} ", bar)
        table.add_row(str(rank), score, _name(row, "bold green" if answer else ""), mark)
    console.print(table)
    if results.none_of_these is not None:
        console.print(Text(f"none of these: {percent(results.none_of_these)}", "dim"))
    if results.reasoning:
        console.print(Text.assemble(("\nreasoning", "bold"), (", as the model wrote it", "dim")))
        for step in reasoning_steps(results.reasoning, candidates):
            console.print(_step(step, plain))
    if results.mode == "reason" and not results.well_formed:
        console.print(Text("the engine had to enforce the format of this reasoning", "yellow"))
    if results.query_truncated:
        console.print(Text("only the start of the query was read", "yellow"))
    console.print(Text("\n" + _footer(results, candidates), "dim"))


def print_stats(results: RankedResults, stats: dict[str, Any], console: Console) -> None:
    """Prints the values of :func:`to_stats` as a table."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for share in timing_shares(results):
        bar = "#" * round(share.percent / 4)
        table.add_row(share.name, seconds(share.value), f"{share.percent:3.0f} % {bar}")
    engine, features = stats["engine"], stats["features"]
    table.add_row("rows computed", str(engine["computed_rows"]), f"in {engine['steps']} steps")
    hit_rate = f"{100 * engine['hit_rate']:.0f} %"
    table.add_row("rows found cached", str(engine["cached_rows"]), hit_rate)
    if engine["pages"]:  # unknown for a server
        table.add_row(
            "pages",
            str(engine["pages"] - engine["free_pages"]),
            f"of {engine['pages']} in use or cached; {engine['evicted_pages']} evicted, "
            f"{engine['preempted']} times preempted",
        )
    hits = f"{features['ram_hits']} from memory, {features['disk_hits']} from disk"
    table.add_row("items encoded", str(features["encoded"]), hits)
    console.print()
    console.print(table)


def _bar(score: float, plain: bool) -> str:
    eighths = round(min(max(score, 0.0), 1.0) * _BAR * 8)
    if plain:
        return ("#" * round(eighths / 8)).ljust(_BAR)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_BLOCKS[rest] if rest else "")).ljust(_BAR)


def _name(row: RankedItem, style: str) -> Text:
    name = display_name(row.item, row.index).replace("\n", " ")
    text = printable(row.item.text or "").replace("\n", " ")
    rest = f"  {text}" if text and text != name else ""
    label = f"[{row.index + 1}] "
    parts = ((label, "dim"), (name, style), (rest, "dim"))
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _mark(row: RankedItem, answer: int | None) -> Text:
    chosen = row.index == answer
    words = {"answer": chosen, "inspected": row.inspected, "truncated": row.truncated}
    marks = [word for word, on in words.items() if on]
    return Text(", ".join(marks), "green" if chosen else "magenta")


def _step(step: Step, plain: bool) -> Text:
    line = Text("  ")
    if step.inspected is not None:
        line.append("> inspects " if plain else "▸ inspects ", "magenta")
        line.append(f"[{step.inspected + 1}] ", "bold")
    for fragment in step.fragments:
        line.append(fragment.text, "" if fragment.candidate is None else "bold")
    return line


def _footer(results: RankedResults, candidates: int) -> str:
    tokens, timings = results.tokens, timing_shares(results)
    phases = ", ".join(f"{share.name} {share.text}" for share in timings)
    total = seconds(sum(share.value for share in timings))
    mode = "reasoning" if results.mode == "reason" else "fast"
    return (
        f"{printable(results.model)}, {mode} mode: {total}"
        + (f" ({phases})" if phases else "")
        + f"\n{candidates} candidates; {tokens.prompt} prompt rows, {tokens.candidates} of them "
        f"candidates; {tokens.inspected} rows inspected, {tokens.generated} tokens written"
        + (f", {tokens.cached} rows found in the cache" if tokens.cached else "")
    )
