"""Settings of an evaluation: systems, candidate counts, sampling of queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args

from retrv_engine import Sampling
from retrv_engine.config import Weights
from retrv_r1.data.mbeir import Pool
from retrv_r1.eval.cells import EvalError
from retrv_r1.types import Mode, Reading

PoolChoice: TypeAlias = Literal["local", "global", "both"]
FIRST_STAGE = "first stage"


@dataclass(frozen=True)
class System:
    """A mode and a reading of candidates; ``slug`` is its name in file names and run tags."""

    mode: Mode
    reading: Reading

    @property
    def name(self) -> str:
        return self.mode + (", full tokens" if self.reading == "full" else "")

    @property
    def slug(self) -> str:
        return self.mode + ("-full" if self.reading == "full" else "")


@dataclass(frozen=True)
class EvalSettings:
    """Options of an evaluation.

    Args:
        k: candidate counts; for each, that many of the first stage's best are reranked.
        modes: modes to evaluate, of ``reason`` and ``fast``.
        full_tokens: whether to also rerank full-length candidates, the baseline of compression.
        int8_keys: whether to round relation keys to int8, as an index stores them.
        weights: dtype in which the engine keeps linear weights; see :class:`EngineConfig`.
        limit: number of queries per cell, drawn by the seed; all if None.
        batch_size: number of queries that are reranked together.
        pool: candidate pool to search: ``local``, ``global``, or ``both`` for one after the other.
        skip_bad: whether to leave out candidates and queries whose pictures cannot be used.
        seed: seed of the sample of queries, the order in prompts, and the bootstrap.
        device: device of both stages.
        dtype: dtype in which the reranker is loaded; the first stage is float32.
        sampling: sampling of tokens; the reranker's default if None.
    Raises:
        EvalError: a value is not valid.
    """

    k: tuple[int, ...] = (10, 50)
    modes: tuple[Mode, ...] = ("reason", "fast")
    full_tokens: bool = True
    int8_keys: bool = False
    weights: Weights = "model"
    limit: int | None = None
    batch_size: int = 16
    pool: PoolChoice = "local"
    skip_bad: bool = False
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    sampling: Sampling | None = None

    def __post_init__(self) -> None:
        if not self.k or min(self.k) < 1:
            raise EvalError(f"k must be one or more counts of at least 1, got {self.k}")
        unknown = set(self.modes) - {"reason", "fast"}
        if unknown or not self.modes:
            raise EvalError(f"modes must be 'reason', 'fast' or both, got {self.modes}")
        if self.limit is not None and self.limit < 1:
            raise EvalError(f"limit must be at least 1, got {self.limit}")
        if self.pool not in get_args(PoolChoice):
            raise EvalError(f"pool must be one of {', '.join(get_args(PoolChoice))}: {self.pool!r}")
        if self.batch_size < 1:
            raise EvalError(f"batch_size must be at least 1, got {self.batch_size}")

    @property
    def pools(self) -> tuple[Pool, ...]:
        """Kinds of pools to search."""
        return ("local", "global") if self.pool == "both" else (self.pool,)

    @property
    def systems(self) -> Sequence[System]:
        """All systems: compressed before full, fast before reason."""
        readings: tuple[Reading, ...] = ("compressed", "full")
        return [
            System(mode, reading)
            for reading in readings[: 1 + self.full_tokens]
            for mode in sorted(set(self.modes))
        ]

    @property
    def ranking_options(self) -> dict[str, Any]:
        """Settings that decide a reranking, besides model, data, system and count."""
        return {
            "int8_keys": self.int8_keys,
            "weights": self.weights,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "device": self.device,
            "dtype": self.dtype,
            "sampling": self.sampling and asdict(self.sampling),
        }
