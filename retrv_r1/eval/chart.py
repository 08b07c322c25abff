"""A bar chart of R@1 by part and system."""

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
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
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
