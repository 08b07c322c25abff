"""Tables of a :mod:`bench.gpu` report, for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from bench import report as reports
from bench.gpu.aims import FULL, Values, aims, case_of, rows_of
from bench.gpu.parts import PartEnd
from retrv_r1.eval.tables import Table


def render(report: Values, console: Console) -> None:
    """Prints ceilings, all tables, and what failed or was left out."""
    if ceilings := report["card"].get("ceilings"):
        console.print(Text(reports.rates(ceilings), style="bold"))
    for sheet in sheets(report):
        console.print(sheet.rich())
    for note in notes(report):
        console.print(f"- {note}", markup=False, highlight=False, soft_wrap=True)
    if report["failed"]:
        console.print(Text(f"FAILED: {report['failed']}", style="bold red"))


def markdown(report: Values) -> str:
    """The tables in Markdown, with card, date and commit."""
    card = report["card"]
    commit = f"commit {card['commit']}" if card["commit"] else "no commit"
    commit += ", with changes" if card["dirty"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    head = f"{card['name']}, {report['started'][:10]}, {commit}; {versions}"
    parts = [f"{head}."]
    if ceilings := card.get("ceilings"):
        parts.append(f"{reports.rates(ceilings)}.")
    for sheet in sheets(report):
        parts += [f"**{sheet.title}**", sheet.markdown()]
    parts += ["\n".join(f"- {note}" for note in notes(report))]
    return "\n\n".join(part for part in parts if part) + "\n"


def line(news: Values | PartEnd) -> str:
    """One line about a row, or about the end of a part."""
    if isinstance(news, PartEnd):
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
    """What failed or was left out, one line for each reason."""
    if report["quick"]:
        yield "A rehearsal at small sizes: its numbers mean nothing."
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


def sheets(report: Values) -> list[Table]:
    """The tables that the report has rows for."""
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


def _efficiency(report: Values) -> Table:
    encoded = {case_of(row): row for row in rows_of(report, "encoding", "tower")}
    rows = rows_of(report, "efficiency", "total")
    full = {case_of(row): row for row in rows if row["form"] == FULL}
    cells = []
    for row in rows:
        before = encoded.get(case_of(row))
        total = row["total"]["median"]
        whole = total + (_encoded(before) if before else 0)
        base = full.get(case_of(row))
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
    return Table("A request", 2, columns, cells)


_MEMORY = ("peak", "above_weights")


def _encoded(row: Values) -> float:
    return row["tower"]["median"] + row["compression"]["median"]


def _encoding(report: Values) -> Table:
    cells = [
        [
            f"{row['model']}, {row['candidates']} × {row['rows']:,}",
            reports.duration(row["tower"]["median"]),
            reports.duration(row["compression"]["median"]),
            f"{row['peak'] / 2**30:.2f}",
        ]
        for row in rows_of(report, "encoding", "tower")
    ]
    columns = ["pictures", "tower", "compression", "peak GiB"]
    return Table("Before a request whose features are not ready", 1, columns, cells)


def _steps(report: Values) -> Table:
    cells = []
    for row in rows_of(report, "step", "seconds"):
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
    return Table("A decode step", 2, columns, cells)


def _tower(report: Values) -> Table:
    cells = [
        [
            f"{row['model']}, {row['pictures']} of {row['patches'][0]} × {row['patches'][1]}",
            reports.duration(row["seconds"]["median"]),
        ]
        for row in rows_of(report, "tower", "seconds")
    ]
    return Table("The vision tower", 1, ["pictures of patches", "time"], cells)


def _rollouts(report: Values) -> Table:
    rows = rows_of(report, "rollouts", "seconds")
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
    return Table("Sampled rollouts over one prompt", 2, columns, cells)


def _kernels(report: Values) -> Table:
    ceilings = report["card"].get("ceilings")
    cells = []
    for row in rows_of(report, "kernel", "seconds"):
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
    return Table("Kernels", 2, columns, cells)


def _aims(report: Values) -> Table:
    """Each aim, what was reached and whether it is met; empty for a rehearsal."""
    found = [] if report["quick"] else aims(report)
    cells = [[what, reached, aim, "met" if met else "missed"] for what, reached, aim, met in found]
    return Table("Aims", 1, ["what", "reached", "aim", ""], cells)
