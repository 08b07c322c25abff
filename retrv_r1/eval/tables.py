"""Tables of a report, for the terminal and for Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich import table as rich_table
from rich.text import Text

from retrv_r1.eval.settings import FIRST_STAGE

Row = Mapping[str, Any]
CUTOFFS = ("1", "5", "10")


@dataclass(frozen=True)
class Table:
    """A table of text cells; the first ``words`` columns hold words, the others numbers."""

    title: str
    words: int
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def rich(self) -> rich_table.Table:
        """The table for a terminal."""
        shown = rich_table.Table(
            title=self.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
        )
        for i, column in enumerate(self.columns):
            shown.add_column(Text(column), justify="left" if i < self.words else "right")
        for row in self.rows:
            shown.add_row(*map(Text, row))
        return shown

    def markdown(self) -> str:
        """The table in Markdown, without its title."""
        rule = ["---" if i < self.words else "---:" for i in range(len(self.columns))]
        return "\n".join(f"| {' | '.join(row)} |" for row in (self.columns, rule, *self.rows))


def tables(report: Row) -> list[Table]:
    """Summary, differences, then a table for each part and candidate count."""
    counts = report["settings"]["k"]
    each = [_part(part, k) for part in report["parts"] for k in counts]
    return [_summary(report), _differences(report), *each]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _recall(row: Row, cutoff: str) -> str:
    """A system's recall in percent; "–" if it ranked fewer candidates than the cutoff."""
    return "–" if int(cutoff) > (row["k"] or int(cutoff)) else _percent(row["recall"][cutoff])


def _difference(interval: Row) -> str:
    mean, low, high = (100 * interval[key] for key in ("mean", "low", "high"))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


_SUMMARY = (
    *("split", "K", "system", "R@1", "R@5", "R@10", "R@K", "R@1 − first stage"),
    *("rows per candidate", "inspections", "rows inspected", "tokens written"),
    *("seconds per query", "well-formed"),
)


def _summary(report: Row) -> Table:
    rows: list[tuple[str, ...]] = []
    for part in report["parts"]:
        first, *reranked = part["mean"]
        gains = {
            (row["system"], row["k"]): _difference(row["recall"]["1"])
            for row in part["differences"]
            if row["baseline"] == FIRST_STAGE
        }
        best = (_recall(first, cutoff) for cutoff in CUTOFFS)
        rest = ("",) * 6
        seconds = f"{first['cost']['seconds']:.3g}"
        rows.append((part["part"], "", FIRST_STAGE, *best, *rest, seconds, ""))
        for row in reranked:
            name, k, cost = row["system"], row["k"], row["cost"]
            best = (_recall(row, cutoff) for cutoff in CUTOFFS)
            rows.append(
                (
                    *(part["part"], str(k), name, *best, _percent(first["recall"][str(k)])),
                    gains[name, k],
                    f"{cost['rows_per_candidate']:.1f}",
                    *(f"{cost[key]:.2f}" for key in ("inspections", "inspected_rows")),
                    f"{cost['generated']:.1f}",
                    f"{cost['seconds']:.3g}",
                    f"{_percent(row['well_formed'])} %",
                )
            )
    return Table("Summary (recall in %)", 3, _SUMMARY, tuple(rows))


def _differences(report: Row) -> Table:
    rows = [
        (
            part["part"],
            str(row["k"]),
            f"{row['system']} − {row['baseline']}",
            *(
                _difference(row["recall"][cutoff]) if int(cutoff) <= row["k"] else "–"
                for cutoff in CUTOFFS
            ),
        )
        for part in report["parts"]
        for row in part["differences"]
    ]
    columns = ("split", "K", "difference", "R@1", "R@5", "R@10")
    return Table("Differences in points, with 95 % intervals", 3, columns, tuple(rows))


def _part(part: Row, k: int) -> Table:
    """A row for each task shape, and their mean."""
    names = [row["system"] for row in part["mean"] if row["k"] in (None, k)]
    times = Counter(cell["shape"] for cell in part["cells"])
    rows = []
    for cell in part["cells"]:
        label = cell["shape"] if times[cell["shape"]] == 1 else f"{cell['cell']}: {cell['shape']}"
        sizes = (str(cell["queries"]), str(cell["pool"]))
        rows.append((label, *sizes, *_recalls(cell["results"], k)))
    rows.append(("mean", "", "", *_recalls(part["mean"], k)))
    title = f"{part['part']}, K = {k}: R@1 / R@5 / R@10 in %"
    return Table(title, 1, ("task", "queries", "pool", f"R@{k}", *names), tuple(rows))


def _recalls(results: Sequence[Row], k: int) -> list[str]:
    """The first stage's R@K, which is the ceiling, then the recalls of every system."""
    ceiling = _percent(results[0]["recall"][str(k)])
    chosen = [row for row in results if row["k"] in (None, k)]
    return [ceiling, *(" / ".join(_recall(row, cutoff) for cutoff in CUTOFFS) for row in chosen)]
