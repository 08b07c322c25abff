"""The report of a run: JSON values, and their tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

Values = Mapping[str, Any]


def build(suite: str, card: Values, rows: Sequence[Values], notes: Sequence[str]) -> dict[str, Any]:
    """The report of a run, with the share of its bound that each row reached.

    Args:
        card: card of the machine, with ``ceilings`` measured during the run.
        rows: rows from :func:`bench.harness.run`.
    """
    rows = [{**row, "bound": bound(row, card["ceilings"])} for row in rows]
    failed = sum(row["failed"] for row in rows)
    return {"suite": suite, "card": dict(card), "rows": rows, "notes": [*notes], "failed": failed}


def bound(row: Values, ceilings: Values) -> dict[str, Any] | None:
    """The ceiling that bounds the row, and the fraction of it that the median call reached.

    ``fractions`` holds both: of memory, and of products in the row's dtype. On a GPU the rate of
    memory is that of copies, because kernels write as well as read.
    """
    counted = row["flops"] or row["bytes"]
    if row["seconds"] is None or row["error"] is None or not counted:
        return None  # also if nothing was compared: it may move other bytes
    memory = "copy" if "copy" in ceilings else "read"
    products = f"gemm {row['dtype']}" if f"gemm {row['dtype']}" in ceilings else "gemm"
    amounts = {memory: row["bytes"], products: row["flops"]}
    least = {name: amount / ceilings[name]["median"] for name, amount in amounts.items()}
    fractions = {name: own / row["seconds"]["median"] for name, own in least.items()}
    name = max(fractions, key=fractions.__getitem__)
    return {"name": name, "fraction": fractions[name], "fractions": fractions}


def render_card(card: Values, console: Console) -> None:
    """Prints the machine's card."""
    cpu = card["cpu"]
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    commit = f"{card['commit'] or 'no commit'}{', with changes' if card['dirty'] else ''}"
    lines = [
        *([("gpu", card["name"])] if card["device"] == "cuda" else []),
        ("cpu", f"{cpu['name']}, {cpu['cores']} cores, {cpu['threads']} threads used"),
        ("native", ", ".join(card["isas"]) or "not compiled"),
        ("memory", f"{card['memory_gib']} GiB, last-level cache {card['cache_mib']} MiB"),
        ("load", " ".join(map(str, card["load"])) + " at the start, over 1, 5 and 15 minutes"),
        ("versions", versions),
        ("commit", commit),
    ]
    grid = Table.grid(padding=(0, 2))
    for name, value in lines:
        grid.add_row(Text(name, style="cyan"), Text(value, overflow="fold"))
    console.print(grid)
    for problem in card["problems"]:
        console.print(Text(f"problem: {problem}", style="red"))


def describe(card: Values) -> str:
    """The device in a few words."""
    return card["name"] + ("" if card["device"] != "cpu" else f", {card['cpu']['threads']} threads")


def render(report: Values, console: Console) -> None:
    """Prints ceilings, a table for each operation, and notes."""
    taken = "taken before each case and at the end"
    console.print(Text(f"{rates(report['card']['ceilings'])}, {taken}", style="bold"))
    for op in dict.fromkeys(row["op"] for row in report["rows"]):
        console.print(_table(op, [row for row in report["rows"] if row["op"] == op]))
    for reason in _without_time(report["rows"]):
        console.print(f"- {reason}", markup=False, highlight=False)
    for note in report["notes"]:
        console.print(f"- {note}", style="dim", markup=False, highlight=False)
    if report["failed"]:
        console.print(Text(f"FAILED: {report['failed']}", style="bold red"))


_RATES = {"read": "read", "copy": "copies (read and written)"}


def rates(ceilings: Values) -> str:
    """Rates with their quartiles, in GB/s and GFLOP/s."""
    parts = []
    for name, rate in ceilings.items():
        dtype = name.removeprefix("gemm").strip() or "float32"
        title, unit = _RATES.get(name, f"{dtype} products"), "GB/s" if name in _RATES else "GFLOP/s"
        digits = 1 if name in _RATES else 0
        middle, low, high = (f"{rate[key] / 1e9:.{digits}f}" for key in ("median", "q1", "q3"))
        parts.append(f"{title} {middle} {unit} ({low} to {high})")
    rounds = ceilings["read"]["rounds"]
    return f"{', '.join(parts)}: medians and quartiles of {rounds} samples"


def _table(op: str, rows: Sequence[Values]) -> Table:
    """A line for each case, followed by one for each implementation."""
    baselines = list(dict.fromkeys(name for row in rows for name in row["ratios"]))
    table = Table(title=op, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("case, dtype, tolerance", no_wrap=True)
    for name in ("error", "median", "IQR", "rounds", *(f"× {name}" for name in baselines)):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("of bound", justify="right", no_wrap=True)
    counts = list(dict.fromkeys(name for row in rows for name in row.get("counts", ())))
    for name in counts:
        table.add_column(name, justify="right", no_wrap=True)
    before = None
    for row in rows:
        case = f"{row['name']}, {row['dtype']}, {row['tolerance']:.0e}"
        if case != before:
            table.add_row(Text(case, style="cyan"))
        cells = (f"  {row['implementation']}", *_cells(row, baselines, counts))
        table.add_row(*map(Text, cells), style="red" if row["failed"] else None)
        before = case
    return table


def _cells(row: Values, baselines: Sequence[str], counts: Sequence[str]) -> Iterator[str]:
    """Cells from error to counts; a row without times only says what is wrong."""
    yield "" if row["error"] is None else f"{row['error']:.1e}"
    seconds, bound = row["seconds"], row["bound"]
    if seconds is None:
        yield "FAILED" if row["failed"] else "–"
        return
    yield duration(seconds["median"])
    yield duration(seconds["q3"] - seconds["q1"])
    yield str(seconds["rounds"])
    for name in baselines:
        ratio = row["ratios"].get(name)
        yield _ratio(ratio) if ratio else ""
    yield _reached(bound)
    yield from (str(row.get("counts", {}).get(name, "")) for name in counts)


def _reached(bound: Values | None) -> str:
    """Share of the ceiling that bounds; on a GPU, where both are close, of the other too."""
    if bound is None:
        return ""
    shown = {bound["name"]: bound["fraction"]}
    if "copy" in bound.get("fractions", ()):
        shown |= bound["fractions"]
    return ", ".join(f"{100 * fraction:.0f} % {name}" for name, fraction in shown.items())


def _ratio(ratio: Values) -> str:
    return f"{ratio['median']:.3g} ({ratio['q1']:.3g}–{ratio['q3']:.3g})"


def _without_time(rows: Sequence[Values]) -> list[str]:
    """Reasons why rows have no time, each once with its cases."""
    cases: dict[str, list[str]] = {}
    for row in rows:
        if row["seconds"] is None:
            reason = f"{row['op']}, {row['implementation']}: {row['note']}"
            cases.setdefault(reason, []).append(f"{row['name']}, {row['dtype']}")
    return [f"{reason} ({'; '.join(names)})" for reason, names in cases.items()]


def duration(seconds: float) -> str:
    """A duration with three digits, in s, ms or µs."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
