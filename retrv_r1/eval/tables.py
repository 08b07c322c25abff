"""Tables of a report, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich import table as rich_table
from rich.text import Text

from retrv_r1.eval.benchmark import CUTOFF_OF
from retrv_r1.eval.settings import FIRST_STAGE

Row = Mapping[str, Any]
CUTOFFS = ("1", "5", "10")
_DEEP = ("20", "50")


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
    """Summary, differences, then tables for each part and candidate count."""
    counts = report["settings"]["k"]
    each = [
        table
        for part in report["parts"]
        for k in counts
        for table in (
            _part(part, k),
            *([_benchmark(part, k)] if "mbeir" in part["mean"][0] else []),
        )
    ]
    return [_summary(report), _differences(report), *_chains(report), *_calibration(report), *each]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _recall(row: Row, cutoff: str) -> str:
    """A system's recall in percent; "–" if it ranked fewer candidates than the cutoff."""
    return "–" if int(cutoff) > (row["k"] or int(cutoff)) else _percent(row["recall"][cutoff])


def _difference(interval: Row) -> str:
    mean, low, high = (100 * interval[key] for key in ("mean", "low", "high"))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _own_recall(row: Row, cutoff: int) -> str:
    """The recall that the benchmark shows; "–" where there is none, or its list is too short."""
    if "mbeir" not in row or cutoff > (row["k"] or cutoff):
        return "–"
    return _percent(row["mbeir"])


def _largest_cutoff(part: Row) -> int:
    """The largest cutoff of the benchmark's cells in a part."""
    return max(cell["mbeir_cutoff"] or 0 for cell in part["cells"])


_COSTS = (
    *("rows per candidate", "inspections", "rows inspected", "tokens written"),
    *("seconds per query", "well-formed"),
)


def _summary(report: Row) -> Table:
    deepest = max(report["settings"]["k"])
    cutoffs = (*CUTOFFS, *(cutoff for cutoff in _DEEP if int(cutoff) <= deepest))
    own = any("mbeir" in part["mean"][0] for part in report["parts"])
    names = (*(f"R@{cutoff}" for cutoff in cutoffs), *(["M-BEIR"] if own else []))
    rows: list[tuple[str, ...]] = []
    for part in report["parts"]:
        first, *reranked = part["mean"]
        gains = {
            (row["system"], row["k"]): _difference(row["recall"]["1"])
            for row in part["differences"]
            if row["baseline"] == FIRST_STAGE
        }
        largest = _largest_cutoff(part)

        def best(row: Row, largest: int = largest) -> list[str]:
            found = [_recall(row, cutoff) for cutoff in cutoffs]
            return [*found, _own_recall(row, largest)] if own else found

        seconds = f"{first['cost']['seconds']:.3g}" if first["cost"] else "–"
        rows.append((part["part"], "", FIRST_STAGE, *best(first), *("",) * 6, seconds, ""))
        for row in reranked:
            k, ceiling = row["k"], _percent(first["recall"][str(row["k"])])
            start = (part["part"], str(k), row["system"])
            gain = gains[row["system"], k]
            rows.append((*start, *best(row), ceiling, gain, *_costs(row)))
    columns = ("split", "K", "system", *names, "R@K", "R@1 − first stage", *_COSTS)
    return Table("Summary (recall in %)", 3, columns, tuple(rows))


def _costs(row: Row) -> tuple[str, ...]:
    """What a system's answers cost, and how many are well-formed."""
    cost = row["cost"]
    return (
        f"{cost['rows_per_candidate']:.1f}",
        *(f"{cost[key]:.2f}" for key in ("inspections", "inspected_rows")),
        f"{cost['generated']:.1f}",
        f"{cost['seconds']:.3g}",
        f"{_percent(row['well_formed'])} %",
    )


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


_STATEMENTS = {
    "text_ideals": "ideal, text queries",
    "picture_ideals": "ideal, others",
    "names": "names",
    "statements": "inspection statements",
    "whole": "of the form",
    "unaided": "unaided",
}


def _chains(report: Row) -> list[Table]:
    """How much of what chains say is right, for each part and each cell."""
    rows = []
    for part in report["parts"]:
        cells = [(_label(cell), cell["results"]) for cell in part["cells"]]
        for name, results in [("all", part["mean"]), *cells]:
            for row in results:
                if chains := row.get("chains"):
                    start = (part["part"], name, f"{row['system']}, K = {row['k']}")
                    looked = chains["inspections"]["share"]
                    counts = [_counted(chains[key]) for key in _STATEMENTS]
                    rows.append((*start, *counts, f"{looked:.2f}"))
    columns = ("split", "task", "system", *_STATEMENTS.values(), "inspections a query")
    return [Table("Chains of thought: what is right, in %", 3, columns, rows)] if rows else []


def _calibration(report: Row) -> list[Table]:
    """Whether scores are probabilities, for each part and system, and by length of the lists."""
    rows = []
    for row in report["calibration"]:
        auroc = "–" if row["auroc"] is None else f"{row['auroc']:.3f}"
        measures = (f"{row['ece']:.3f}", f"{row['brier']:.3f}", auroc)
        sizes = (str(row["lists"]), str(row["without_answer"]))
        rows.append((row["part"], row["system"], "all", *sizes, *_trust(row), *measures))
        for band in row["lengths"]:
            length = f"{band['from']} to {band['to']}"
            rows.append(("", "", length, str(band["lists"]), "", *_trust(band), *("",) * 3))
    columns = (
        *("split", "system", "candidates", "lists", "without answer", "score", "right"),
        *("calibration error", "Brier", "AUROC, none of these"),
    )
    return [Table("Are scores probabilities?", 3, columns, rows)] if rows else []


def _trust(row: Row) -> tuple[str, str]:
    """Mean score of the first places, and how many are right."""
    return f"{row['confidence']:.3f}", f"{row['accuracy']:.3f}"


def _counted(count: Row) -> str:
    """A share in percent with the number that it is of."""
    return "–" if count["share"] is None else f"{_percent(count['share'])} of {count['of']}"


def _part(part: Row, k: int) -> Table:
    """A row for each cell, and their mean."""
    names = [row["system"] for row in part["mean"] if row["k"] in (None, k)]
    rows = []
    for cell in part["cells"]:
        sizes = (str(cell["queries"]), str(cell["pool"]))
        rows.append((_label(cell), *sizes, *_recalls(cell["results"], k)))
    rows.append(("mean", "", "", *_recalls(part["mean"], k)))
    title = f"{part['part']}, K = {k}: R@1 / R@5 / R@10 in %"
    return Table(title, 1, ("task", "queries", "pool", f"R@{k}", *names), tuple(rows))


def _benchmark(part: Row, k: int) -> Table:
    """The recall that M-BEIR's tables show for each of its cells, and their mean."""
    names = [row["system"] for row in part["mean"] if row["k"] in (None, k)]
    cells = [cell for cell in part["cells"] if cell["mbeir_cutoff"]]

    def recalls(results: Sequence[Row], cutoff: int) -> list[str]:
        return [_own_recall(row, cutoff) for row in results if row["k"] in (None, k)]

    rows = [
        (_label(cell), f"R@{cell['mbeir_cutoff']}", *recalls(cell["results"], cell["mbeir_cutoff"]))
        for cell in cells
    ]
    count = f"{len(cells)} of {len(CUTOFF_OF)}" if len(cells) < len(CUTOFF_OF) else len(cells)
    rows.append((f"mean of {count} cells", "", *recalls(part["mean"], _largest_cutoff(part))))
    title = f"{part['part']}, K = {k}: M-BEIR in %"
    return Table(title, 2, ("task", "recall", *names), tuple(rows))


def _label(cell: Row) -> str:
    return f"{cell['cell']}: {cell['shape']}"


def _recalls(results: Sequence[Row], k: int) -> list[str]:
    """The first stage's R@K, which is the ceiling, then the recalls of every system."""
    ceiling = _percent(results[0]["recall"][str(k)])
    chosen = [row for row in results if row["k"] in (None, k)]
    return [ceiling, *(" / ".join(_recall(row, cutoff) for cutoff in CUTOFFS) for row in chosen)]
