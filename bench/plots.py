"""Charts of a report: time over each swept size, and ratios to the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from bench.report import describe

Values = Mapping[str, Any]
SWEEPS = {"K": "candidates K", "rows": "rows per candidate", "d": "width d"}
# Each implementation has the same colour in every chart; baselines have warm ones.
_COLOURS = {
    "triton": "#1f6fb2",
    "native": "#1f6fb2",
    "native, avx2": "#8fb8de",
    "folded": "#d9772b",
    "direct": "#8c3b2e",
}
_OTHERS = ("#f2b880", "#7a8b5c", "#b08bb5", "#9aa0a6", "#5f6368")
# The chart of ratios shows the first of these that ran.
_BEST = ("triton", "native", "folded")


def draw(report: Values, folder: Path) -> list[Path]:
    """Draws PNGs of a report's float32 rows.

    Returns:
        Files drawn; none for sweeps or ratios that the report does not have.
    """
    folder.mkdir(parents=True, exist_ok=True)
    timed = [row for row in report["rows"] if row["seconds"]]
    drawn = []
    for op in dict.fromkeys(row["op"] for row in timed):
        sweeps = {size: _of(timed, op, size) for size in SWEEPS}
        swept = {
            size: own
            for size, own in sweeps.items()
            if len({row["shape"][size] for row in own}) > 1
        }
        if swept:
            drawn.append(folder / f"{op.replace(' ', '_')}.png")
            _sweeps(op, swept, report["card"], drawn[-1])
    bars = {op: _bars(timed, op) for op in dict.fromkeys(row["op"] for row in timed)}
    bars = {op: own for op, own in bars.items() if own}
    if bars:
        drawn.append(folder / "ratios.png")
        _ratios(bars, report["card"], drawn[-1])
    return drawn


def _of(rows: Sequence[Values], op: str, plot: str) -> list[Values]:
    return [row for row in rows if row["op"] == op and plot in row["plots"]]


def _sweeps(op: str, swept: Mapping[str, Sequence[Values]], card: Values, path: Path) -> None:
    figure = _figure(1.3 + 3.8 * len(swept), 4.2)
    panels = figure.subplots(1, len(swept), sharey=True, squeeze=False)[0]
    names = dict.fromkeys(name for size, rows in swept.items() for name in _complete(size, rows))
    for axes, (size, rows) in zip(panels, swept.items(), strict=True):
        _lines(axes, size, rows, list(names))
    panels[0].set_ylabel("time of a call, median and quartiles")
    panels[0].yaxis.set_major_formatter(EngFormatter("s"))
    figure.suptitle(f"{op}, float32", fontsize=11)
    lines = {line.get_label(): line for axes in panels for line in axes.get_lines()}
    figure.legend(lines.values(), lines, loc="outside right upper", fontsize=8, frameon=False)
    _save(figure, card, path)


def _complete(size: str, rows: Sequence[Values]) -> list[str]:
    """Implementations that ran at every size of a sweep."""
    at: dict[str, set[int]] = {}
    for row in rows:
        at.setdefault(row["implementation"], set()).add(row["shape"][size])
    return [name for name, sizes in at.items() if sizes == set.union(*at.values())]


def _lines(axes: Axes, size: str, rows: Sequence[Values], names: Sequence[str]) -> None:
    for name in names:
        own = sorted(
            (row for row in rows if row["implementation"] == name), key=lambda r: r["shape"][size]
        )
        if len(own) < 2:
            continue
        x = [row["shape"][size] for row in own]
        y, low, high = ([row["seconds"][key] for row in own] for key in ("median", "q1", "q3"))
        colour = _colour(name, names)
        axes.plot(x, y, "o-", color=colour, label=name, ms=4, lw=1.5)
        axes.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
    sizes = sorted({row["shape"][size] for row in rows})
    fastest = min(row["seconds"]["median"] for row in rows if row["shape"][size] == sizes[-1])
    guide = [fastest * 0.7 * one / sizes[-1] for one in sizes]
    axes.plot(sizes, guide, ":", color="#5f6368", lw=1, label="linear")
    axes.set(xscale="log", yscale="log", xlabel=SWEEPS[size])
    axes.set_xticks(sizes, [f"{one:,}" for one in sizes], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_title(_fixed(size, rows), fontsize=8, color="#5f6368")
    axes.grid(alpha=0.25, which="major")
    axes.spines[["top", "right"]].set_visible(False)


def _fixed(size: str, rows: Sequence[Values]) -> str:
    """Sizes that are constant in the sweep."""
    shapes = [row["shape"] for row in rows]
    same = [name for name in shapes[0] if len({shape[name] for shape in shapes}) == 1]
    return ", ".join(f"{name} {shapes[0][name]:,}" for name in same)


def _bars(rows: Sequence[Values], op: str) -> list[tuple[str, Values]]:
    """(label, ratio) of the best implementation of each case of an op."""
    bars = []
    own = _of(rows, op, "ratios")
    for name in dict.fromkeys(row["name"] for row in own):
        found = {row["implementation"]: row for row in own if row["name"] == name}
        best = next((found[one] for one in _BEST if one in found), None)
        if best is not None:
            which = best["implementation"]
            bars += [(f"{name}, {which} × {o}", r) for o, r in best["ratios"].items()]
    return bars


def _ratios(bars: Mapping[str, Sequence[tuple[str, Values]]], card: Values, path: Path) -> None:
    counts = [len(own) for own in bars.values()]
    figure = _figure(8.5, 1.2 + 0.21 * sum(counts) + 0.45 * len(counts))
    heights = {"height_ratios": counts}
    panels = figure.subplots(len(bars), sharex=True, squeeze=False, gridspec_kw=heights)[:, 0]
    for axes, (op, own) in zip(panels, bars.items(), strict=True):
        _bar_panel(axes, own)
        axes.set_title(op, fontsize=9, loc="left")
    low, high = panels[0].get_xlim()
    panels[0].set_xlim(low, high * 1.3)  # room for the largest number
    panels[-1].xaxis.set_major_formatter("{x:g}")
    panels[-1].set_xlabel("times as fast as the baseline (median over rounds, quartiles)")
    _save(figure, card, path)


def _bar_panel(axes: Axes, bars: Sequence[tuple[str, Values]]) -> None:
    """Bars from 1: slower than the baseline is to the left, in another colour."""
    for place, (_, ratio) in enumerate(bars):
        median, low, high = (ratio[key] for key in ("median", "q1", "q3"))
        axes.barh(place, median - 1, 0.7, left=1, color="#1f6fb2" if median >= 1 else "#d9772b")
        axes.plot([low, high], [place, place], color="black", lw=0.8)
        axes.annotate(
            f"{median:.3g}",
            (max(high, 1), place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    axes.set_yticks(range(len(bars)), [label for label, _ in bars], fontsize=7)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.axvline(1, color="black", lw=0.8)
    axes.set_xscale("log")
    axes.spines[["top", "right"]].set_visible(False)


def _colour(name: str, names: Sequence[str]) -> str:
    others = [other for other in names if other not in _COLOURS]
    return _COLOURS.get(name) or _OTHERS[others.index(name) % len(_OTHERS)]


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, card: Values, path: Path) -> None:
    """Saves a figure with the machine as its caption."""
    commit = f"{card['commit'] or 'no commit'}{' with changes' if card['dirty'] else ''}"
    caption = f"{describe(card)}; torch {card['versions']['torch']}; commit {commit}; cold caches"
    figure.supxlabel(caption, fontsize=7, color="#5f6368")
    figure.savefig(path, metadata={"Software": None})
