"""Lists of many lengths, some without the answer, on which scores must be probabilities."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from retrv_r1.eval.outcomes import Outcome
from retrv_r1.eval.plan import CellWork
from retrv_r1.eval.settings import EvalSettings

SHORTEST = 5
_RULE = 2
"""Number of the rule by which lists are drawn: outcomes on lists of another are not taken up."""


def calibration_lists(
    work: CellWork, first: Sequence[Outcome], settings: EvalSettings
) -> dict[str, list[str]]:
    """A list of candidates for queries of a cell, by qid.

    A list has ``SHORTEST`` candidates or more if the pool has, up to the largest k, short and long
    ones equally often in the logarithm of their length. They are drawn among the first stage's
    best, out of as many as the list has, up to k: so they are as alike as what a search finds, or
    as different as what people put together. With the chance ``without_answer`` all relevant
    candidates are left out; other lists have at least the one that the first stage puts first. For
    an answer that is not among its best k there is no such list: to add it would teach that the
    candidate least like the query is right. Length, choice and chance are drawn by seed and query.
    """
    positives = {query.qid: query.positives for query in work.queries}
    lists = {}
    for outcome in first:
        draw = random.Random(f"calibration {settings.seed} {outcome.qid}")
        longest = max(settings.k)
        size = min(longest, round(SHORTEST * (longest / SHORTEST) ** draw.random()))
        without = draw.random() < settings.without_answer
        found = _drawn(outcome.ranking[:longest], positives[outcome.qid], size, without, draw)
        if found:
            lists[outcome.qid] = found
    return lists


def _drawn(
    nearest: Sequence[str], known: Sequence[str], size: int, without: bool, draw: random.Random
) -> list[str]:
    """A list in the first stage's order; empty if it lacks what it should have."""
    relevant = [did for did in nearest if did in known]
    pool = [did for did in nearest if did not in known] if without else list(nearest)
    if not pool or not (relevant or without):
        return []
    wanted = min(size, len(pool))
    among = round(wanted * (len(pool) / wanted) ** draw.random())
    chosen = draw.sample(pool[:among], wanted)
    if not without and set(chosen).isdisjoint(relevant):
        chosen[draw.randrange(wanted)] = relevant[0]
    return [did for did in pool if did in chosen]


def about(settings: EvalSettings) -> Mapping[str, object]:
    """What decides the lists, besides the first stage's outcomes."""
    return {"shortest": SHORTEST, "without_answer": settings.without_answer, "drawn": _RULE}
