"""Options of a reranker and of a ranking, checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from retrv_engine import EngineConfig, Sampling, SGLangConfig
from retrv_engine.config import check_whole
from retrv_engine.sampler import COLDEST
from retrv_r1.model.tokens import MAX_CANDIDATES
from retrv_r1.types import EngineName, Mode, RankRequest, Reading

VOTING_TEMPERATURE = 0.7


def check_settings(
    engine: EngineName,
    config: EngineConfig | SGLangConfig | None,
    *,
    window: int,
    batch_size: int,
    cache: str | Path | None,
) -> None:
    """Checks the settings of a reranker, before its model is loaded.

    Raises:
        ValueError: an unknown engine, a config of another engine, or a value of another type or
            out of range.
    """
    if engine not in get_args(EngineName):
        known = ", ".join(map(repr, get_args(EngineName)))
        raise ValueError(f"engine must be one of {known}, got {engine!r}")
    if not isinstance(config, EngineConfig | SGLangConfig | None):
        raise ValueError(f"config must be an EngineConfig or an SGLangConfig, got {config!r}")
    if engine == "sglang" and isinstance(config, EngineConfig):
        raise ValueError("the sglang engine takes an SGLangConfig, not an EngineConfig")
    if engine != "sglang" and isinstance(config, SGLangConfig):
        raise ValueError(f'an SGLangConfig is for engine="sglang", not {engine!r}')
    if engine == "plain" and isinstance(config, EngineConfig) and config.weights != "model":
        raise ValueError("the plain engine rounds no weights: use the local engine")
    check_whole("window", window, 2)
    if window > MAX_CANDIDATES:
        raise ValueError(f"window must be between 2 and {MAX_CANDIDATES}, not {window}")
    check_whole("batch_size", batch_size, 1)
    if not isinstance(cache, str | Path | None):
        raise ValueError(f"cache must be a directory or None, got {cache!r}")


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
            raise ValueError(f"mode must be 'reason', 'fast' or 'auto', got {self.mode!r}")
        if self.reading not in get_args(Reading):
            known = ", ".join(map(repr, get_args(Reading)))
            raise ValueError(f"reading must be one of {known}, got {self.reading!r}")
        if self.reading == "pointwise" and self.mode != "fast":
            raise ValueError('pointwise reading has no reasoning: use mode="fast"')
        if not isinstance(self.sampling, Sampling):
            raise ValueError(f"sampling must be a Sampling, got {self.sampling!r}")
        check_whole("votes", self.votes, 1)
        if self.votes > 1 and self.mode == "fast":
            raise ValueError('fast mode has nothing to vote on: use mode="reason"')
        if self.votes > 1 and self.sampling.temperature < COLDEST:
            raise ValueError("votes of greedy sampling are all the same: give a temperature")
        if self.top_k is not None:
            check_whole("top_k", self.top_k, 1)


def default_sampling(votes: int, max_inspections: int) -> Sampling:
    """Greedy sampling, or sampling that is warm enough for votes to differ."""
    check_whole("votes", votes, 1)
    temperature = VOTING_TEMPERATURE if votes > 1 else 0.0
    return Sampling(temperature=temperature, max_inspections=max_inspections)


def list_of_requests(requests: Iterable[RankRequest]) -> list[RankRequest]:
    """The requests of a batch.

    Raises:
        ValueError: it is no list, or holds something else.
    """
    values = list(requests) if isinstance(requests, Iterable) else [requests]
    if not isinstance(requests, Iterable) or not all(isinstance(v, RankRequest) for v in values):
        raise ValueError("requests must be a list of RankRequest")
    return values
