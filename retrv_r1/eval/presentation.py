"""What a prompt shows of a query: the wording of its task, and its candidates in an order."""

from __future__ import annotations

import random
from collections.abc import Sequence

from retrv_r1.data import mbeir
from retrv_r1.eval.cells import prompt_order
from retrv_r1.eval.settings import EvalSettings
from retrv_r1.types import RankRequest


def wording(query: mbeir.Query, settings: EvalSettings) -> str | None:
    """The instruction of a query; None for the one that the checkpoint has for all tasks."""
    if settings.instructions == "none":
        return None
    if settings.instructions == "random":
        return mbeir.instruction(query, random.Random(f"instruction {settings.seed} {query.qid}"))
    return mbeir.instruction(query)


def request(
    task: mbeir.Task, query: mbeir.Query, dids: Sequence[str], settings: EvalSettings
) -> RankRequest:
    """The request to rerank a query's candidates.

    In the first stage's order, equal scores are drawn by a seed: otherwise a model that cannot
    tell candidates apart would be as good as the first stage.

    Args:
        dids: candidates in the order of :func:`shown`.
    """
    return RankRequest(
        task.item(query),
        [task.item(task.candidate(did)) for did in dids],
        wording(query, settings),
        tie_seed=tie_seed(query.qid, settings) if settings.order == "retrieved" else None,
    )


def tie_seed(qid: str, settings: EvalSettings) -> int:
    """Seed that orders equal scores of a query's candidates."""
    return random.Random(f"ties {settings.seed} {qid}").getrandbits(62)


def shown(dids: Sequence[str], qid: str, settings: EvalSettings) -> list[str]:
    """Candidates in the order in which prompts show them, the first stage's best first or shuffled.

    A shuffled list is cut into windows afterwards.
    """
    if settings.order == "retrieved":
        return list(dids)
    return prompt_order(dids, qid, settings.seed)
