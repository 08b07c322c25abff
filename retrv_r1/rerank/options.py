"""Options of a ranking, checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args

from retrv_engine import Sampling
from retrv_engine.sampler import COLDEST
from retrv_r1.types import Mode, Reading

VOTING_TEMPERATURE = 0.7


@dataclass(frozen=True)
class RankOptions:
    """How a list is ranked; :meth:`Reranker.rank` documents the fields.

    Raises:
        ValueError: an unknown value, or options that exclude each other.
    """

    mode: Mode = "reason"
    reading: Reading = "compressed"
    sampling: Sampling = field(default_factory=Sampling)
    votes: int = 1
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode must be 'reason' or 'fast', got {self.mode!r}")
        if self.reading not in get_args(Reading):
            known = ", ".join(map(repr, get_args(Reading)))
            raise ValueError(f"reading must be one of {known}, got {self.reading!r}")
        if self.reading == "pointwise" and self.mode != "fast":
            raise ValueError('pointwise reading has no reasoning: use mode="fast"')
        if self.votes < 1:
            raise ValueError(f"votes must be at least 1, got {self.votes}")
        if self.votes > 1 and self.mode == "fast":
            raise ValueError('fast mode has nothing to vote on: use mode="reason"')
        if self.votes > 1 and self.sampling.temperature < COLDEST:
            raise ValueError("votes of greedy sampling are all the same: give a temperature")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")


def default_sampling(votes: int, max_inspections: int) -> Sampling:
    """Greedy sampling, or sampling that is warm enough for votes to differ."""
    temperature = VOTING_TEMPERATURE if votes > 1 else 0.0
    return Sampling(temperature=temperature, max_inspections=max_inspections)
