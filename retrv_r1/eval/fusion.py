"""Fusion of two stages, as LamRA ranks: the first stage's score plus a weight times P(yes)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from retrv_r1.eval.benchmark import LAMRA_WEIGHTS
from retrv_r1.eval.outcomes import Outcome
from retrv_r1.eval.settings import EvalSettings


def weight_of(cell: str, settings: EvalSettings) -> float:
    """The weight of P(yes) in a cell."""
    if settings.fuse is None:
        raise ValueError("these settings have no fusion")
    return LAMRA_WEIGHTS.get(cell, 1.0) if settings.fuse == "lamra" else settings.fuse


def fuse(
    pointwise: Sequence[Outcome], first: Mapping[str, Outcome], weight: float
) -> list[Outcome]:
    """Outcomes ranked by the sum of both stages' scores.

    Candidates of equal sums keep the order of the pointwise outcome, which the first stage does
    not decide.

    Args:
        pointwise: outcomes of the pointwise reading; their scores are P(yes).
        first: outcomes of the first stage by qid, with similarities.
        weight: weight of P(yes).
    """
    return [_fused(outcome, first[outcome.qid], weight) for outcome in pointwise]


def _fused(outcome: Outcome, first: Outcome, weight: float) -> Outcome:
    similar = dict(zip(first.ranking, first.scores, strict=True))
    yes = zip(outcome.ranking, outcome.scores, strict=True)
    sums = {did: similar[did] + weight * score for did, score in yes}
    ranking = tuple(sorted(sums, key=lambda did: -sums[did]))
    scores = tuple(sums[did] for did in ranking)
    return replace(outcome, ranking=ranking, scores=scores, answer=ranking[0])
