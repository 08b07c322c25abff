"""Corrects a loss for rollouts that another program sampled, and watches how far it is away.

The engine computes the policy's numbers in another order, perhaps in another precision. With
``d = log π_policy − log π_engine`` of a sampled token, before the update, the loss of the token is
weighted by a truncated importance weight:

    token:     min(exp d, cap)            of the token itself
    sequence:  min(exp Σ d, cap)          of all tokens of the rollout together

Weights of tokens are the default: where engine and policy share weights and precision, d is
rounding and both are 1, and where they do not, the variance of a product grows with the length of a
chain, while a weight of one token stays small. What they leave out is that a rollout as a whole was
more or less likely; ``sequence`` has that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from retrv_r1.types import RetrvError

Level = Literal["token", "sequence", "none"]


class DifferenceTooLarge(RetrvError, FloatingPointError):
    """Engine and policy do not agree on the log-probabilities of what was sampled."""


@dataclass(frozen=True)
class Correction:
    """How a loss is corrected.

    Args:
        level: see the module; ``"none"`` weights nothing.
        cap: largest weight.
    Raises:
        ValueError: an unknown level, or a cap below 1.
    """

    level: Level = "token"
    cap: float = 2.0

    def __post_init__(self) -> None:
        if self.level not in get_args(Level):
            raise ValueError(f"level must be one of {get_args(Level)}, not {self.level!r}")
        if not self.cap >= 1:
            raise ValueError(f"cap must be at least 1, not {self.cap}")

    def weights(self, gap: Tensor) -> Tensor:
        """Weights ``[b, t]`` of tokens.

        Args:
            gap: log-probabilities by the policy minus those by the engine, ``[b, t]``; 0 where
                nothing was sampled.
        """
        if self.level == "none":
            return torch.ones_like(gap)
        if self.level == "sequence":
            gap = gap.sum(-1, keepdim=True).expand_as(gap)
        return gap.exp().clamp(max=self.cap)


def check_difference(gap: Tensor, bound: float) -> dict[str, float]:
    """The mean and the largest absolute difference, to log.

    The mean is bounded: at the edge of a nucleus, rounding may put a token in or out, which moves
    the log-probabilities of that one row.

    Args:
        gap: differences of all sampled tokens, in nats, ``[s]``.
        bound: largest mean.
    Raises:
        DifferenceTooLarge: the mean is larger, or not a number.
    """
    if not len(gap):
        return {}
    mean, largest = float(gap.abs().mean()), float(gap.abs().max())
    if not mean <= bound:
        raise DifferenceTooLarge(
            f"engine and trainer disagree on the log-probabilities of {len(gap)} sampled tokens by "
            f"{mean:.3g} nats on average, {largest:.3g} at most, where {bound:.3g} is allowed: "
            "weights that the engine does not have yet, other precisions, or a loss that has "
            "diverged; lower the learning rate, use float32 for both (bf16=False: TRL's default is "
            "mixed precision), or raise the bound"
        )
    return {"engine_difference/mean": mean, "engine_difference/max": largest}
