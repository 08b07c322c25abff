"""How far outcomes are from golden ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from retrv_r1.verify.golden import Outcome

BOUNDS = {"plain": 1e-5, "local": 1e-5, "sglang": 1e-4}
"""Largest difference of a score in float32, by engine."""


@dataclass(frozen=True)
class Comparison:
    """One way of ranking all lists, against their golden scores.

    Args:
        what: engine or dialect.
        cache: ``"cold"`` or ``"warm"``.
        batch: lists that were ranked together, or requests sent at once.
        cases: number of rankings.
        bound: largest difference allowed.
        worst: largest difference of a score.
        worst_case: the ranking that has it.
        other_ranks: rankings in another order.
        other_reasoning: rankings with another reasoning or other inspections.
        silent: rankings whose reasoning the dialect does not show.
    """

    what: str
    cache: str
    batch: int
    cases: int
    bound: float
    worst: float
    worst_case: str
    other_ranks: tuple[str, ...]
    other_reasoning: tuple[str, ...]
    silent: int = 0

    @property
    def passed(self) -> bool:
        """Whether scores are within the bound, and ranks and reasoning the same."""
        return self.worst <= self.bound and not self.other_ranks and not self.other_reasoning


def compare(
    what: str,
    found: Mapping[str, Outcome],
    golden: Mapping[str, Outcome],
    *,
    cache: str,
    batch: int,
    bound: float,
) -> Comparison:
    """Compares outcomes with the golden ones of the same names.

    Raises:
        ValueError: there is nothing to compare.
    """
    if not found:
        raise ValueError("there are no rankings to compare")
    differences = {name: _difference(one, golden[name]) for name, one in found.items()}
    worst_case = max(differences, key=lambda name: differences[name])
    return Comparison(
        what,
        cache,
        batch,
        len(found),
        bound,
        differences[worst_case],
        worst_case,
        _names(found, lambda name, one: one.order not in (None, golden[name].order)),
        _names(found, lambda name, one: _reasons_otherwise(one, golden[name])),
        sum(one.reasoning is None and bool(golden[name].reasoning) for name, one in found.items()),
    )


def _difference(one: Outcome, golden: Outcome) -> float:
    """Largest difference of a score; infinite for missing candidates and NaN."""
    if len(one.scores) != len(golden.scores):
        return float("inf")
    pairs = zip(one.scores, golden.scores, strict=True)
    found = [abs(a - b) for a, b in pairs]
    # NaN would compare as equal to everything.
    return float("inf") if any(map(math.isnan, found)) else max(found, default=0.0)


def _reasons_otherwise(one: Outcome, golden: Outcome) -> bool:
    wrote = one.reasoning is not None and one.reasoning != golden.reasoning
    return wrote or (one.inspected is not None and one.inspected != golden.inspected)


def _names(
    found: Mapping[str, Outcome], differs: Callable[[str, Outcome], bool]
) -> tuple[str, ...]:
    return tuple(name for name, one in found.items() if differs(name, one))


def all_passed(comparisons: Sequence[Comparison]) -> bool:
    """Whether there are comparisons, and all of them passed."""
    return bool(comparisons) and all(one.passed for one in comparisons)
