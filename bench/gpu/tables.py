"""A report of :mod:`bench.gpu` for a reader: tables on a terminal, and the same in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench import report as reports
from bench.gpu.parts import Done

Values = Mapping[str, Any]
OURS = ("triton", "native")
TIME, MEMORY, REASONED, FAST, STEP, BANDWIDTH = 7.0, 3.0, 0.5, 0.025, 1.5, 0.6
"""Aims: full over compressed in time and memory above the weights, seconds, times the floor, share
of bandwidth."""
LATENCY = 5e-6
"""Seconds: what memory could be read in is no aim below, where a launch takes as long."""
FULL = "transformers, full tokens"
COMPRESSED = "ours, compressed"


@dataclass(frozen=True)
class Sheet:
    """A table: cells are text, those of the first ``names`` columns words."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 2


def render(report: Values, console: Console) -> None:
    """Ceilings, all tables, what failed or was left out."""
    if ceilings := report["card"].get("ceilings"):
        console.print(Text(reports.rates(ceilings), style="bold"))
    for sheet in sheets(report):
        table = Table(title=sheet.title, title_justify="left", box=box.SIMPLE_HEAD)
        for number, name in enumerate(sheet.columns):
            side: Any = "left" if number < sheet.names else "right"
            table.add_column(name, justify=side, no_wrap=number > 0)
        for row in sheet.rows:
            table.add_row(*map(Text, row))
        console.print(table)
    for note in notes(report):
        console.print(f"- {note}", markup=False, highlight=False, soft_wrap=True)
    if report["failed"]:
        console.print(Text(f"FAILED: {report['failed']}", style="bold red"))


def markdown(report: Values) -> str:
    """The tables for a document, with card, date and commit."""
    card = report["card"]
    commit = f"commit {card['commit']}" if card["commit"] else "no commit"
    commit += ", with changes" if card["dirty"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    head = f"{card['name']}, {report['started'][:10]}, {commit}; {versions}"
    parts = [f"{head}."]
    if ceilings := card.get("ceilings"):
        parts.append(f"{reports.rates(ceilings)}.")
    for sheet in sheets(report):
        rule = ["---"] * sheet.names + ["---:"] * (len(sheet.columns) - sheet.names)
        lines: list[Sequence[str]] = [sheet.columns, rule, *sheet.rows]
        parts.append(f"**{sheet.title}**")
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    parts += ["\n".join(f"- {note}" for note in notes(report))]
    return "\n\n".join(part for part in parts if part) + "\n"


def line(news: Values | Done) -> str:
    """A row, or a part's end, as it comes."""
    if isinstance(news, Done):
        note = f": {news.note}" if news.note else ""
        return f"== {news.name} {news.state} in {news.took} s of {news.share}{note}"
    what = [str(news[key]) for key in _WORDS if news.get(key) not in (None, "")]
    return f"{', '.join(what)}: {news.get('note') or _result(news)}"


_WORDS = (
    *("op", "name", "implementation", "kind", "model", "form", "candidates", "rows"),
    *("inspections", "sequences", "prompt", "patches"),
)


def _result(row: Values) -> str:
    for key in ("total", "seconds", "tower"):
        if row.get(key):
            return reports.duration(row[key]["median"])
    return "measured"


def notes(report: Values) -> Iterator[str]:
    """What failed or was left out, once for each reason, then how tables are meant."""
    if report["quick"]:
        yield "A rehearsal in a small form: its numbers say nothing."
    for part in report["parts"]:
        if part["state"] != "done":
            yield f"{part['name']} {part['state']}: {part['note']}"
    reasons: dict[str, list[str]] = {}
    for row in report["rows"]:
        for note in (row.get("note"), row.get("how")):
            if note:
                words = [str(row[k]) for k in _WORDS if k != "kind" and row.get(k) is not None]
                reasons.setdefault(f"{row['part']}: {note}", []).append(" ".join(words))
    for reason, cases in reasons.items():
        more = f" and {len(cases) - 4} more" if len(cases) > 4 else ""
        yield f"{reason} ({'; '.join(cases[:4])}{more})"


def sheets(report: Values) -> list[Sheet]:
    """All tables that the report has rows for."""
    made = [
        _aims(report),
        _efficiency(report),
        _encoding(report),
        _steps(report),
        _tower(report),
        _rollouts(report),
        _kernels(report),
    ]
    return [sheet for sheet in made if sheet.rows]


def _of(report: Values, kind: str, key: str) -> list[Values]:
    """Rows of a kind that were measured."""
    return [row for row in report["rows"] if row["kind"] == kind and row.get(key)]


def _efficiency(report: Values) -> Sheet:
    encoded = {_case(row): row for row in _of(report, "encoding", "tower")}
    rows = _of(report, "efficiency", "total")
    full = {_case(row): row for row in rows if row["form"] == FULL}
    cells = []
    for row in rows:
        before = encoded.get(_case(row))
        total = row["total"]["median"]
        whole = total + (_encoded(before) if before else 0)
        base = full.get(_case(row))
        ratios = [base["total"]["median"] / total] if base else []
        ratios += [base[key] / row[key] for key in _MEMORY if base and row[key] > 0]
        cells.append(
            [
                f"{row['model']}, {row['candidates']} × {row['rows']:,}",
                row["form"],
                str(row["inspections"]),
                reports.duration(row["first"]["median"]),
                reports.duration(total),
                reports.duration(whole) if before else "",
                *(f"{row[key] / 2**30:.2f}" for key in _MEMORY),
                *([f"{ratio:.1f}" for ratio in ratios] + [""] * 3)[:3],
                "" if row["form"].startswith("ours") else f"{row['alike']} of {row['written']}",
            ]
        )
    columns = ["case", "form", "inspections", "first token", "total", "with tower", "peak GiB"]
    columns += ["above weights", "× full, time", "× peak", "× above weights", "tokens as ours"]
    return Sheet("A request", columns, cells)


_MEMORY = ("peak", "above_weights")


def _case(row: Values) -> tuple[str, int, int]:
    return row["model"], row["candidates"], row["rows"]


def _encoded(row: Values) -> float:
    return row["tower"]["median"] + row["compression"]["median"]


def _encoding(report: Values) -> Sheet:
    cells = [
        [
            f"{row['model']}, {row['candidates']} × {row['rows']:,}",
            reports.duration(row["tower"]["median"]),
            reports.duration(row["compression"]["median"]),
            f"{row['peak'] / 2**30:.2f}",
        ]
        for row in _of(report, "encoding", "tower")
    ]
    columns = ["pictures", "tower", "compression", "peak GiB"]
    return Sheet("Before a request whose features are not ready", columns, cells, 1)


def _steps(report: Values) -> Sheet:
    cells = []
    for row in _of(report, "step", "seconds"):
        step, floor = row["seconds"]["median"], row.get("floor")
        cells.append(
            [
                f"{row['model']}, {row['sequences']} × {row['prompt']:,}",
                row["form"],
                reports.duration(step),
                reports.duration(floor) if floor else "",
                f"{step / floor:.2f}" if floor else "",
                f"{100 * row['busy']:.0f} %",
                f"{row['launches']:.0f}",
                f"{row['host_launches']:.0f}",
                f"{row['compiled_at_start']} + {row['compiled'] - row['compiled_at_start']}",
                reports.duration(row["start"]),
            ]
        )
    columns = ["sequences × prompt", "form", "a step", "floor", "× floor", "busy", "kernels"]
    columns += ["launches", "compiled at start + later", "start"]
    return Sheet("A decode step", columns, cells)


def _tower(report: Values) -> Sheet:
    cells = [
        [
            f"{row['model']}, {row['pictures']} of {row['patches'][0]} × {row['patches'][1]}",
            reports.duration(row["seconds"]["median"]),
        ]
        for row in _of(report, "tower", "seconds")
    ]
    return Sheet("The vision tower", ["pictures of patches", "time"], cells, 1)


def _rollouts(report: Values) -> Sheet:
    rows = _of(report, "rollouts", "seconds")
    others = {(r["model"], r["sequences"]): r for r in rows if r["form"].endswith("generate()")}
    cells = []
    for row in rows:
        other = others.get((row["model"], row["sequences"]))
        ratio = other["seconds"]["median"] / row["seconds"]["median"] if other else None
        cells.append(
            [
                f"{row['model']}, {row['sequences']}",
                row["form"],
                reports.duration(row["seconds"]["median"]),
                f"{row['tokens_a_second']:,.0f}",
                f"{ratio:.2f}" if ratio else "",
            ]
        )
    columns = ["sequences", "form", "time", "tokens a second", "× generate()"]
    return Sheet("Sampled rollouts over one prompt", columns, cells)


def _kernels(report: Values) -> Sheet:
    ceilings = report["card"].get("ceilings")
    cells = []
    for row in _of(report, "kernel", "seconds"):
        bound = reports.bound(row, ceilings) if ceilings else None
        fractions = bound["fractions"] if bound else {}
        ratios = [f"{name} {ratio['median']:.3g}" for name, ratio in row["ratios"].items()]
        cells.append(
            [
                f"{row['op']}, {row['name']}",
                row["implementation"],
                "" if row["error"] is None else f"{row['error']:.1e}",
                reports.duration(row["seconds"]["median"]),
                "; ".join(f"{100 * own:.0f} % {name}" for name, own in fractions.items()),
                "; ".join(ratios),
                "one by one" if row["how"] else "",
            ]
        )
    columns = ["op, case", "implementation", "error", "time", "of", "its speed over", "timed"]
    return Sheet("Kernels", columns, cells)


def _aims(report: Values) -> Sheet:
    """Each aim, what was reached and whether that is enough; none of a rehearsal."""
    found = [] if report["quick"] else [*_aims_of_requests(report), *_aims_of_steps(report)]
    cells = [[what, reached, aim, "met" if met else "missed"] for what, reached, aim, met in found]
    return Sheet("Aims", ["what", "reached", "aim", ""], cells, 1)


Aim = tuple[str, str, str, bool]


def _aims_of_requests(report: Values) -> Iterator[Aim]:
    rows = _of(report, "efficiency", "total")
    full = {_case(row): row for row in rows if row["form"] == FULL}
    for row in rows:
        model, candidates, length = _case(row)
        case = f"{model}, {candidates} × {length:,}"
        total, base = row["total"]["median"], full.get(_case(row))
        if row["form"] == COMPRESSED:
            case += f", {row['inspections']} inspections"
            if base is not None:
                time = base["total"]["median"] / total
                yield f"time, full over compressed: {case}", f"{time:.1f}", "≥ 7", time >= TIME
            if base is not None and row["above_weights"] > 0:
                # Both hold the same weights, so that whole peaks could never be that far apart.
                memory = base["above_weights"] / row["above_weights"]
                what = f"memory above weights, full over compressed: {case}"
                yield what, f"{memory:.1f}", "≥ 3", memory >= MEMORY
            if model == "7B" and row["inspections"]:
                yield f"reasoned: {case}", reports.duration(total), "≤ 0.5 s", total <= REASONED
        if row["form"] == "ours, fast":
            yield f"fast: {case}", reports.duration(total), "≤ 25 ms", total <= FAST


def _aims_of_steps(report: Values) -> Iterator[Aim]:
    for row in _of(report, "step", "floor"):
        if row["form"] == "replayed":
            ratio = row["seconds"]["median"] / row["floor"]
            case = f"{row['model']}, {row['sequences']} sequences"
            yield f"a step over its floor: {case}", f"{ratio:.2f}", "≤ 1.5", ratio <= STEP
    ceilings = report["card"].get("ceilings")
    for row in _of(report, "kernel", "seconds") if ceilings else ():
        bound = reports.bound(row, ceilings)
        if row["implementation"] in OURS and bound and bound["name"] in ("copy", "read"):
            reached = bound["fraction"]
            if reached * row["seconds"]["median"] < LATENCY:
                continue
            what = f"bandwidth: {row['op']}, {row['name']}, {row['dtype']}"
            yield what, f"{100 * reached:.0f} %", "≥ 60 %", reached >= BANDWIDTH
