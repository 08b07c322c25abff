"""Whether scores are probabilities: calibration error, Brier score, and who sees that none fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrv_r1.eval.outcomes import Outcome

BINS = 15
LENGTHS = ((1, 10), (11, 25), (26, 128))
"""Bands of list lengths, for which calibration is shown apart."""


@dataclass(frozen=True)
class Judged:
    """Lists with the score of their first place, and whether it is right.

    Attributes:
        scores: scores of the first places, ``[n]``.
        right: whether they are relevant, ``[n]``.
        lengths: numbers of candidates, ``[n]``.
        answered: whether a list has a relevant candidate, ``[n]``.
        none: probabilities that none fits, ``[n]``; NaN where the model does not say it.
    """

    scores: np.ndarray
    right: np.ndarray
    lengths: np.ndarray
    answered: np.ndarray
    none: np.ndarray

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], positives: dict[str, frozenset[str]]) -> Judged:
        """Judges outcomes by their queries' positives."""
        known = [positives[one.qid] for one in outcomes]
        pairs = list(zip(outcomes, known, strict=True))
        none = [np.nan if o.none_of_these is None else o.none_of_these for o in outcomes]
        return cls(
            scores=np.array([o.scores[0] for o in outcomes], float),
            right=np.array([o.ranking[0] in fits for o, fits in pairs], bool),
            lengths=np.array([len(o.ranking) for o in outcomes], int),
            answered=np.array([not fits.isdisjoint(o.ranking) for o, fits in pairs], bool),
            none=np.array(none, float),
        )

    @classmethod
    def joined(cls, several: Sequence[Judged]) -> Judged:
        """The lists of several."""
        names = ("scores", "right", "lengths", "answered", "none")
        return cls(*(np.concatenate([getattr(one, name) for one in several]) for name in names))

    def __getitem__(self, chosen: np.ndarray) -> Judged:
        names = ("scores", "right", "lengths", "answered", "none")
        return Judged(*(getattr(self, name)[chosen] for name in names))

    def row(self) -> dict[str, Any]:
        """Measures for a report; ``auroc`` is None where none's probability is not known."""
        parts = [self[(low <= self.lengths) & (self.lengths <= high)] for low, high in LENGTHS]
        bands = zip(LENGTHS, parts, strict=True)
        return {
            **self._means(),
            "without_answer": int((~self.answered).sum()),
            "ece": calibration_error(self.scores, self.right),
            "brier": float(np.mean((self.scores - self.right) ** 2)),
            "auroc": auroc(self.none, ~self.answered),
            "bins": [self[chosen]._means() for chosen in equal_mass(self.scores)],
            "lengths": [
                {"from": low, "to": high, **part._means()}
                for (low, high), part in bands
                if len(part.scores)
            ],
        }

    def _means(self) -> dict[str, Any]:
        return {
            "lists": len(self.scores),
            "confidence": float(self.scores.mean()),
            "accuracy": float(self.right.mean()),
        }


def equal_mass(scores: np.ndarray, bins: int = BINS) -> list[np.ndarray]:
    """Indices of the scores in bins of equally many, lowest first; empty bins are left out."""
    order = np.argsort(scores, kind="stable")
    return [chosen for chosen in np.array_split(order, bins) if len(chosen)]


def calibration_error(scores: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: mean over bins of equal mass of |mean score − share right|."""
    gaps = [
        len(chosen) * abs(scores[chosen].mean() - right[chosen].mean())
        for chosen in equal_mass(scores, bins)
    ]
    return float(sum(gaps) / len(scores))


def auroc(values: np.ndarray, positive: np.ndarray) -> float | None:
    """Chance that a positive has the larger value than a negative; equal ones count half.

    None if a value is NaN, or either kind is missing.
    """
    count, others = int(positive.sum()), int((~positive).sum())
    if not count or not others or np.isnan(values).any():
        return None
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * others))
