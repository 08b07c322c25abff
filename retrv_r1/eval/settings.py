"""Settings of an evaluation: systems, candidate counts, sampling of queries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, TypedDict, get_args

from retrv_engine import Sampling
from retrv_engine.config import Weights
from retrv_r1.data.mbeir import Pool
from retrv_r1.eval.cells import EvalError
from retrv_r1.model.tokens import MAX_CANDIDATES
from retrv_r1.rerank.reranker import WINDOW
from retrv_r1.types import EarlierWindows, Mode, Reading

PoolChoice: TypeAlias = Literal["local", "global", "both"]
FIRST_STAGE = "first stage"
Instructions: TypeAlias = Literal["first", "random", "none"]
Order: TypeAlias = Literal["shuffled", "retrieved"]
RunFormat: TypeAlias = Literal["trec", "uniir"]

_CHOICES = {
    "pool": PoolChoice,
    "instructions": Instructions,
    "order": Order,
    "earlier_windows": EarlierWindows,
    "run_format": RunFormat,
}


@dataclass(frozen=True)
class System:
    """A mode and a reading of candidates; ``slug`` is its name in file names and run tags.

    Args:
        fused: whether scores of the first stage are added to the reranker's.
    """

    mode: Mode
    reading: Reading
    fused: bool = False

    @property
    def name(self) -> str:
        if self.reading == "pointwise":
            return "pointwise" + (" + first stage" if self.fused else "")
        return self.mode + (", full tokens" if self.reading == "full" else "")

    @property
    def slug(self) -> str:
        if self.reading == "pointwise":
            return "pointwise" + ("-fused" if self.fused else "")
        return self.mode + ("-full" if self.reading == "full" else "")


class EvalOptions(TypedDict, total=False):
    """Options of :func:`retrv_r1.eval.run` that :class:`EvalSettings` describes."""

    modes: Sequence[Mode]
    full_tokens: bool | None
    readings: Sequence[Reading] | None
    fuse: float | Literal["lamra"] | None
    instructions: Instructions
    order: Order
    window: int
    earlier_windows: EarlierWindows
    candidates: str | None
    run_format: RunFormat
    int8_keys: bool
    weights: Weights
    limit: int | None
    batch_size: int
    pool: PoolChoice
    skip_bad: bool
    calibration: bool
    without_answer: float
    seed: int
    sampling: Sampling | None


@dataclass(frozen=True)
class EvalSettings:
    """Options of an evaluation.

    Args:
        k: candidate counts; for each, that many of the first stage's best are reranked.
        modes: modes to evaluate, of ``reason`` and ``fast``.
        full_tokens: whether to also rerank full-length candidates, the baseline of compression;
            they are if None.
        readings: readings to evaluate; None for ``compressed``, and ``full`` by ``full_tokens``.
            One of the two can be set.
        fuse: weight of P(yes) beside the first stage's score, for another system that ranks by
            their sum; ``"lamra"`` for LamRA's weights, which are 1 but for MSCOCO; None for no
            such system. It needs the pointwise reading.
        instructions: wording of the task in prompts: the ``first`` of each task, a ``random`` one
            for each query, or ``none``, which is the checkpoint's own for all tasks.
        order: order of candidates in prompts: ``shuffled``, or as ``retrieved``.
        window: number of candidates in one prompt.
        earlier_windows: mode of the windows before the last; see :class:`retrv_r1.Reranker`.
        candidates: file or folder with the lists of another first stage; see
            :mod:`retrv_r1.eval.candidates`. The checkpoint needs no first stage then.
        run_format: format of run files: six columns, or ``uniir`` for a seventh with the task id.
        int8_keys: whether to round relation keys to int8, as an index stores them.
        weights: dtype in which the engine keeps linear weights; see :class:`EngineConfig`.
        limit: number of queries per cell, drawn by the seed; all if None.
        batch_size: number of queries that are reranked together.
        pool: candidate pool to search: ``local``, ``global``, or ``both`` for one after the other.
        skip_bad: whether to leave out candidates and queries whose pictures cannot be used.
        calibration: whether to also rank lists of 5 to K candidates, K the largest, and to measure
            on them whether scores are probabilities.
        without_answer: chance that a query's list is without the answer.
        seed: seed of the sample of queries, those lists, random instructions, the order in
            prompts, the order of equal scores, and the bootstrap.
        device: device of both stages.
        dtype: dtype in which the reranker is loaded; the first stage is float32.
        sampling: sampling of tokens; the reranker's default if None.
    Raises:
        EvalError: a value is not valid.
    """

    k: tuple[int, ...] = (10, 50)
    modes: Sequence[Mode] = ("reason", "fast")
    full_tokens: bool | None = None
    readings: Sequence[Reading] | None = None
    fuse: float | Literal["lamra"] | None = None
    instructions: Instructions = "first"
    order: Order = "shuffled"
    window: int = WINDOW
    earlier_windows: EarlierWindows = "fast"
    candidates: str | None = None
    run_format: RunFormat = "trec"
    int8_keys: bool = False
    weights: Weights = "model"
    limit: int | None = None
    batch_size: int = 16
    pool: PoolChoice = "local"
    skip_bad: bool = False
    calibration: bool = False
    without_answer: float = 0.25
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
            raise EvalError(f"limit must be at least 1, or left out, got {self.limit}")
        if self.batch_size < 1:
            raise EvalError(f"batch_size must be at least 1, got {self.batch_size}")
        if not 2 <= self.window <= MAX_CANDIDATES:
            raise EvalError(f"window must be between 2 and {MAX_CANDIDATES}, got {self.window}")
        if not 0 <= self.without_answer < 1:
            raise EvalError(f"without_answer must be in [0, 1), got {self.without_answer}")
        if self.calibration and max(self.k) > self.window:
            raise EvalError(
                f"calibration is measured in lists of one window: k must be at most {self.window}"
            )
        for name, known in _CHOICES.items():
            if getattr(self, name) not in get_args(known):
                choices = ", ".join(map(repr, get_args(known)))
                raise EvalError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")
        self._check_readings()

    def _check_readings(self) -> None:
        if self.readings is not None:
            if self.full_tokens is not None:
                raise EvalError("readings and full_tokens say the same: leave full_tokens out")
            if not self.readings or set(self.readings) - set(get_args(Reading)):
                known = ", ".join(map(repr, get_args(Reading)))
                raise EvalError(f"readings must be one or more of {known}, got {self.readings}")
            if "pointwise" in self.readings and "fast" not in self.modes:
                raise EvalError("pointwise reading has no reasoning: add the mode fast")
        if self.fuse is not None and "pointwise" not in (self.readings or ()):
            raise EvalError(
                "fuse needs the pointwise reading, whose P(yes) it weighs: add --reading pointwise"
            )
        if isinstance(self.fuse, str) and self.fuse != "lamra":
            raise EvalError(f"fuse must be a number or 'lamra', got {self.fuse!r}")
        if isinstance(self.fuse, (int, float)) and not 0 <= self.fuse < math.inf:
            raise EvalError(f"fuse must be a finite weight of at least 0, got {self.fuse}")

    @property
    def pools(self) -> tuple[Pool, ...]:
        """Kinds of pools to search."""
        return ("local", "global") if self.pool == "both" else (self.pool,)

    @property
    def systems(self) -> Sequence[System]:
        """All systems: by reading, then fast before reason; the fused one is the last."""
        usual: Sequence[Reading] = (
            ("compressed",) if self.full_tokens is False else ("compressed", "full")
        )
        chosen = usual if self.readings is None else self.readings
        systems = [
            System(mode, reading)
            for reading in get_args(Reading)
            if reading in chosen
            for mode in sorted(set(self.modes))
            if reading != "pointwise" or mode == "fast"
        ]
        fused = [] if self.fuse is None else [System("fast", "pointwise", fused=True)]
        return systems + fused

    def ranking_options(self, mode: Mode, k: int) -> dict[str, Any]:
        """Settings that decide a reranking, besides model, data and reading."""
        windows = mode == "reason" and k > self.window
        return {
            "mode": mode,
            "k": k,
            "int8_keys": self.int8_keys,
            "instructions": self.instructions,
            "order": self.order,
            "window": self.window,
            "earlier_windows": self.earlier_windows if windows else None,
            "weights": self.weights,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "device": self.device,
            "dtype": self.dtype,
            "sampling": self.sampling and asdict(self.sampling),
        }
