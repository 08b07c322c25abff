"""Recall, computed by a library, and bootstrap intervals of mean differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retrv_kernels.extras import install_command
from retrv_r1.eval.cells import EvalError
from retrv_r1.eval.outcomes import Outcome

CUTOFFS = (1, 5, 10)
DEEP_CUTOFFS = (20, 50)
"""Cutoffs of lists that are long enough."""
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def cutoffs(counts: Sequence[int]) -> tuple[int, ...]:
    """Cutoffs of reranked lists, for an evaluation's candidate counts."""
    return CUTOFFS + tuple(k for k in DEEP_CUTOFFS if k <= max(counts))


def require_metrics() -> None:
    """Checks for the metrics library before hours of ranking.

    Raises:
        EvalError: it is not installed.
    """
    try:
        import ir_measures  # noqa: F401
    except ImportError as error:
        raise EvalError(
            f"evaluation needs ir-measures ({error}): {install_command('eval')}"
        ) from error


def hits(
    outcomes: Sequence[Outcome], positives: Mapping[str, Sequence[str]], cutoffs: Sequence[int]
) -> dict[int, np.ndarray]:
    """Whether a relevant candidate is among each query's first k: by k, ``[n]`` of 0.0 and 1.0.

    The mean is M-BEIR's Recall@k, which the library calls Success@k.
    """
    import ir_measures

    # Ranks as scores: trec_eval sorts by score in single precision and breaks ties by name.
    run = {
        outcome.qid: {did: float(-rank) for rank, did in enumerate(outcome.ranking)}
        for outcome in outcomes
    }
    qrels = {qid: dict.fromkeys(dids, 1) for qid, dids in positives.items()}
    measures = {ir_measures.Success @ k: k for k in cutoffs}
    row = {outcome.qid: i for i, outcome in enumerate(outcomes)}
    found = {k: np.full(len(outcomes), np.nan) for k in cutoffs}
    for metric in ir_measures.iter_calc(list(measures), qrels, run):
        found[measures[metric.measure]][row[metric.query_id]] = metric.value
    assert not any(np.isnan(values).any() for values in found.values())
    return found


def mean_interval(cells: Sequence[np.ndarray], seed: int, resamples: int = RESAMPLES) -> Interval:
    """Mean over cells of each cell's mean, with its percentile bootstrap interval.

    Queries are resampled within their cell. To compare paired systems, pass differences.

    Args:
        cells: for each cell, an array with a value per query.
    """
    rng = np.random.default_rng(seed)
    total = np.zeros(resamples)
    for values in cells:
        # There are few distinct values; how often each is drawn is a multinomial.
        distinct, counts = np.unique(values, return_counts=True)
        drawn = rng.multinomial(len(values), counts / len(values), size=resamples)
        total += drawn @ distinct / len(values)
    low, high = np.percentile(total / len(cells), [2.5, 97.5])
    return Interval(float(np.mean([values.mean() for values in cells])), float(low), float(high))
