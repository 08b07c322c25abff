"""M-BEIR's cells in the order of its tables, with the recall that those tables show."""

from __future__ import annotations

from collections.abc import Mapping

CUTOFF_OF: Mapping[str, int] = {
    "visualnews_task0": 5,
    "mscoco_task0": 5,
    "fashion200k_task0": 10,
    "webqa_task1": 5,
    "edis_task2": 5,
    "webqa_task2": 5,
    "visualnews_task3": 5,
    "mscoco_task3": 5,
    "fashion200k_task3": 10,
    "nights_task4": 5,
    "oven_task6": 5,
    "infoseek_task6": 5,
    "fashioniq_task7": 10,
    "cirr_task7": 5,
    "oven_task8": 5,
    "infoseek_task8": 5,
}
"""k of the Recall@k that the benchmark reports for each cell, by task and then data set."""

LAMRA_WEIGHTS: Mapping[str, float] = {"mscoco_task0": 0.5, "mscoco_task3": 0.1}
"""LamRA's weights of P(yes) beside the first stage's score; 1 for the other cells."""


def rank_of(cell: str) -> int:
    """Place of a cell in the benchmark's tables; other cells come after all of them."""
    names = list(CUTOFF_OF)
    return names.index(cell) if cell in CUTOFF_OF else len(names)
