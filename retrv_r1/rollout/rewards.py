"""Rewards of rollouts, as reward functions of TRL: a number for each, None for an empty one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from retrv_r1.rollout.task import Rollout

Growth = Literal["linear", "cosine", "constant"]
"""How λ goes from 0 to 1 over training: in a line (the paper), along half a cosine; or it stays."""
Truncated = Literal["zero", "count"]
"""What the answer of a truncated rollout earns: nothing, or what any answer earns."""


def curriculum(growth: Growth, progress: float, constant: float = 0.5) -> float:
    """λ, the price of an inspection, at a share of training in [0, 1].

    Args:
        constant: λ of the growth ``"constant"``.
    """
    if growth == "constant":
        return constant
    progress = min(1.0, max(0.0, progress))
    return progress if growth == "linear" else (1 - math.cos(math.pi * progress)) / 2


class FormatReward:
    """1 for a well-formed rollout, else 0.

    The engine lets no rollout leave the form, so this asks whether the policy would have kept it by
    itself; see :class:`retrv_r1.rollout.Rollout`.
    """

    __name__ = "format"

    def __call__(self, rollout: Sequence[Rollout], **_: Any) -> list[float | None]:
        return [None if one.empty else float(one.well_formed) for one in rollout]


@dataclass(frozen=True)
class ResultReward:
    """``1[correct] · (1 − λ · N_ins / K)`` (Retrv-R1, arXiv 2510.02745), λ as training goes on.

    N_ins is the number of inspections, K that of candidates. Logs ``accuracy``, ``inspections`` (a
    rollout), ``lambda``, and the shares ``truncated`` and ``empty``.

    Args:
        growth: see :data:`Growth`.
        constant: λ of the growth ``"constant"``.
        truncated: see :data:`Truncated`.
    Raises:
        ValueError: an unknown value, or λ outside [0, 1].
    """

    growth: Growth = "linear"
    constant: float = 0.5
    truncated: Truncated = "zero"
    __name__ = "result"

    def __post_init__(self) -> None:
        for name, known in (("growth", Growth), ("truncated", Truncated)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name} must be one of {get_args(known)}")
        if not 0 <= self.constant <= 1:
            raise ValueError(f"constant must be in [0, 1], not {self.constant}")

    def of(self, rollout: Rollout, price: float) -> float | None:
        """Reward of a rollout at λ = ``price``."""
        if rollout.empty:
            return None
        if not rollout.correct or (rollout.truncated and self.truncated == "zero"):
            return 0.0
        return 1 - price * len(rollout.inspected) / len(rollout.task.candidates)

    def __call__(
        self,
        rollout: Sequence[Rollout],
        trainer_state: Any,
        log_metric: Callable[[str, float], object],
        **_: Any,
    ) -> list[float | None]:
        progress = trainer_state.global_step / max(1, trainer_state.max_steps)
        price = curriculum(self.growth, progress, self.constant)
        done = [one for one in rollout if not one.empty]
        log_metric("lambda", price)
        log_metric("empty", 1 - len(done) / len(rollout))
        if done:
            log_metric("accuracy", _mean(one.correct for one in done))
            log_metric("inspections", _mean(len(one.inspected) for one in done))
            log_metric("truncated", _mean(one.truncated for one in done))
        return [self.of(one, price) for one in rollout]


@dataclass(frozen=True)
class MarginReward:
    """Log-probability of the right label over its best rival, between −1 and 1.

    Off unless it is given to a trainer. A task without an answer, or with one candidate, earns 0.

    Args:
        scale: margin in nats that earns 1.
    Raises:
        ValueError: a scale that is not positive.
    """

    scale: float = 5.0
    __name__ = "margin"

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale must be positive, not {self.scale}")

    def __call__(self, rollout: Sequence[Rollout], **_: Any) -> list[float | None]:
        return [None if one.empty else self.of(one) for one in rollout]

    def of(self, rollout: Rollout) -> float:
        """Reward of a rollout that is not empty."""
        margin = rollout.margin or 0.0
        return max(-1.0, min(1.0, margin / self.scale))


def _mean(values: Any) -> float:
    found = [float(value) for value in values]
    return sum(found) / len(found)
