"""Costs of a ranking: seconds per phase, computed rows, cache hits."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from retrv_engine import Stats
from retrv_r1.report.view import seconds, timing_shares
from retrv_r1.rerank.feature_encoder import FeatureStats
from retrv_r1.types import RankedResults


def to_stats(results: RankedResults, engine: Stats, features: FeatureStats) -> dict[str, Any]:
    """Costs as JSON values: ``timings`` and ``tokens`` of the ranking, ``engine``, ``features``."""
    return {
        "timings": dict(results.timings),
        "tokens": asdict(results.tokens),
        "engine": asdict(engine) | {"hit_rate": engine.hit_rate},
        "features": asdict(features) | {"hit_rate": features.hit_rate},
    }


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
