"""Lists of many lengths, some without the answer, on which scores must be probabilities."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from retrv_r1.eval.outcomes import Outcome
from retrv_r1.eval.plan import CellWork
from retrv_r1.eval.settings import EvalSettings

SHORTEST = 5


def calibration_lists(
    work: CellWork, first: Sequence[Outcome], settings: EvalSettings
) -> dict[str, list[str]]:
    """A list of candidates for each query of a cell, by qid.

    A list has ``SHORTEST`` candidates or more, up to the settings' largest k, short and long ones
    equally often in the logarithm of their length. They are the first stage's best. Of a share of
    the lists (``without_answer``) all relevant candidates are left out; in the others a relevant
    one takes the last place if the first stage did not find any. Length and share are drawn by
    seed and query. Queries that have no relevant candidate in the pool have no list.
    """
    positives = {query.qid: query.positives for query in work.queries}
    lists = {}
    for outcome in first:
        known = [did for did in positives[outcome.qid] if did in work.task.pool]
        if not known:
            continue
        draw = random.Random(f"calibration {settings.seed} {outcome.qid}")
        longest = max(settings.k)
        size = min(longest, round(SHORTEST * (longest / SHORTEST) ** draw.random()))
        without = draw.random() < settings.without_answer
        lists[outcome.qid] = _list(outcome.ranking, known, size, without=without)
    return lists


def _list(nearest: Sequence[str], known: Sequence[str], size: int, *, without: bool) -> list[str]:
    if without:
        return [did for did in nearest if did not in known][:size]
    found = list(nearest[:size])
    if set(found).isdisjoint(known):
        found = [*found[: size - 1], known[0]]
    return found


def about(settings: EvalSettings) -> Mapping[str, object]:
    """What decides the lists, besides the first stage's outcomes."""
    return {"shortest": SHORTEST, "without_answer": settings.without_answer}
