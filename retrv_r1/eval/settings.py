"""What an evaluation is asked to do: systems, candidate counts, and how prompts are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from retrv_engine import Sampling
from retrv_engine.config import Weights
from retrv_r1.data.mbeir import Pool
from retrv_r1.eval.cells import EvalError
from retrv_r1.types import Mode, Reading

FIRST_STAGE = "first stage"


@dataclass(frozen=True)
class System:
    """One way of reranking; ``slug`` is its name in file names and run tags."""

    mode: Mode
    reading: Reading

    @property
    def name(self) -> str:
        return self.mode + (", full tokens" if self.reading == "full" else "")

    @property
    def slug(self) -> str:
        return self.mode + ("-full" if self.reading == "full" else "")


@dataclass(frozen=True)
class Settings:
    """Options of an evaluation.

    Args:
        k: how many of the first stage's best are reranked; each count is a system of its own.
        modes: of ``reason`` and ``fast``.
        full_tokens: rerank from full-length candidates too, the baseline of the compression.
        int8_keys: round relation keys to int8, as an index stores them.
        weights: how the engine reads the language model's; see :class:`EngineConfig`.
        limit: queries per cell, drawn by the seed; all when None.
        pool: which candidate pool is searched.
        device: that both stages run on.
        dtype: that the reranker's weights are read in; the first stage is float32.
        seed: decides the sample of queries, the order in prompts, and the bootstrap.
        sampling: how tokens are chosen; the reranker's default when None.
    """

    k: tuple[int, ...] = (10, 50)
    modes: tuple[Mode, ...] = ("reason", "fast")
    full_tokens: bool = True
    int8_keys: bool = False
    weights: Weights = "model"
    limit: int | None = None
    batch_size: int = 16
    pool: Pool = "local"
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    sampling: Sampling | None = None

    def __post_init__(self) -> None:
        if not self.k or min(self.k) < 1:
            raise EvalError(f"k must hold counts of at least 1, got {self.k}")
        unknown = set(self.modes) - {"reason", "fast"}
        if unknown or not self.modes:
            raise EvalError(f"modes must be of 'reason' and 'fast', got {self.modes}")
        if self.limit is not None and self.limit < 1:
            raise EvalError(f"limit must be at least 1, got {self.limit}")
        if self.batch_size < 1:
            raise EvalError(f"batch_size must be at least 1, got {self.batch_size}")

    @property
    def systems(self) -> Sequence[System]:
        """Compressed ones first, fast before reasoning."""
        readings: tuple[Reading, ...] = ("compressed", "full")
        return [
            System(mode, reading)
            for reading in readings[: 1 + self.full_tokens]
            for mode in sorted(set(self.modes))
        ]

    @property
    def ranking_options(self) -> dict[str, Any]:
        """What decides a reranking beside model, data, system and count."""
        return {
            "int8_keys": self.int8_keys,
            "weights": self.weights,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "device": self.device,
            "dtype": self.dtype,
            "sampling": self.sampling and asdict(self.sampling),
        }
