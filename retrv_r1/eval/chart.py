"""Charts of a report: bars of R@1, and how often a score is right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_COLOURS = ("#9aa0a6", "#8fb8de", "#1f6fb2", "#f2b880", "#d9772b")


def draw(report: Mapping[str, Any], path: Path) -> bool:
    """Draws R@1 at the largest K as PNG, with a black line at the first stage's R@K.

    Returns:
        False, and nothing is drawn, if matplotlib is not installed.
    """
    if not _can_draw():
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    k = max(report["settings"]["k"])
    parts = report["parts"]
    means = [[row for row in part["mean"] if row["k"] in (None, k)] for part in parts]
    width = 0.8 / len(means[0])
    figure = Figure(figsize=(2 + 2.4 * len(parts), 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i, row in enumerate(means[0]):
        heights = [100 * mean[i]["recall"]["1"] for mean in means]
        places = [p - 0.4 + (i + 0.5) * width for p in range(len(parts))]
        colour = _COLOURS[i % len(_COLOURS)]
        bars = axes.bar(places, heights, width * 0.92, label=row["system"], color=colour)
        axes.bar_label(bars, fmt="%.0f", fontsize=7)
    for place, mean in enumerate(means):
        ceiling = 100 * mean[0]["recall"][str(k)]
        label = f"first stage R@{k}" if place == 0 else "_"  # no second entry in the legend
        axes.hlines(ceiling, place - 0.42, place + 0.42, colors="black", lw=1, label=label)
    axes.set_xticks(range(len(parts)), [part["part"] for part in parts])
    axes.set_ylim(0, 105)
    axes.set_ylabel("R@1, mean over tasks, %")
    axes.set_title(f"{report['model']} on {report['dataset']}, K = {k}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, metadata={"Software": None})
    return True


def draw_reliability(report: Mapping[str, Any], path: Path) -> bool:
    """Draws the share that is right against the score as PNG, a panel for each part.

    A point is one bin of equally many lists; on the diagonal, scores are probabilities.

    Returns:
        False, and nothing is drawn, if matplotlib is not installed.
    """
    if not _can_draw():
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = report["calibration"]
    parts = list(dict.fromkeys(row["part"] for row in rows))
    size = (3.2 * len(parts) + 0.6, 3.8)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(parts), squeeze=False, sharey=True)[0]
    for panel, part in zip(panels, parts, strict=True):
        panel.plot([0, 1], [0, 1], color="#9aa0a6", lw=1, ls="--")
        for row in (row for row in rows if row["part"] == part):
            colour = _COLOURS[2 if row["system"] == "fast" else 4]
            points = [(one["confidence"], one["accuracy"]) for one in row["bins"]]
            label = f"{row['system']}: error {row['ece']:.3f}"
            panel.plot(*zip(*points, strict=True), "o-", ms=3, lw=1, color=colour, label=label)
        panel.set(title=part, xlabel="score of the first place", xlim=(0, 1), ylim=(0, 1))
        panel.set_aspect("equal")
        panel.legend(fontsize=7, frameon=False, loc="upper left")
    panels[0].set_ylabel("share that is right")
    figure.savefig(path, metadata={"Software": None})
    return True


def _can_draw() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        return False
    return True
