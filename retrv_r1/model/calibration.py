"""How logits of labels become scores that mean "probability that this is right"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

REFERENCE = 50
"""Length of the lists for which ``temperature`` is the divisor, whatever ``length_power`` is."""


def log_scores(
    logits: Tensor,
    none: Tensor | None,
    temperature: float | Tensor,
    length_power: float | Tensor,
    none_bias: float | Tensor,
) -> Tensor:
    """See :meth:`ModeCalibration.log_scores`; the parameters may be tensors that learn."""
    logits = logits.double()
    padding = logits.isneginf()
    count = (~padding).sum(-1, keepdim=True).clamp(min=1).double()
    if none is not None:
        logits = torch.cat([logits, none.double()[..., None] + none_bias], -1)
        padding = torch.cat([padding, torch.zeros_like(padding[..., :1])], -1)
    # Infinite only after the division, whose gradient would be NaN.
    divided = logits.masked_fill(padding, 0) / (temperature * (count / REFERENCE) ** length_power)
    return divided.masked_fill(padding, -torch.inf).log_softmax(-1)


@dataclass(frozen=True)
class ModeCalibration:
    """Calibration of one mode; the default leaves logits as they are.

    Args:
        temperature: divisor of logits in lists of ``REFERENCE`` candidates.
        length_power: exponent p of the divisor ``temperature · (n / REFERENCE)^p`` in lists of n
            candidates: below 0, logits of shorter lists are divided by more.
        none_bias: number added to the logit of the label for no candidate.
        likeness, recall: weights of what content tokens say, which is added to the labels' logits
            before anything is chosen or divided (:func:`retrv_r1.model.prior.resemblance`).
    """

    temperature: float = 1.0
    length_power: float = 0.0
    none_bias: float = 0.0
    likeness: float = 0.0
    recall: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int | float) or not abs(value) < float("inf"):
                raise ValueError(f"{name} must be a finite number, got {value!r}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    def bias(self, resemblance: Tensor) -> Tensor:
        """What is added to the labels' logits: ``[…, k, 2]`` → ``[…, k]``."""
        return resemblance @ resemblance.new_tensor([self.likeness, self.recall])

    def log_scores(self, logits: Tensor, none: Tensor | None = None) -> Tensor:
        """Logarithms of scores, float64 ``[…, k]``, or ``[…, k + 1]`` with none's share last.

        Args:
            logits: logits of the labels with their bias, ``[…, k]``; minus infinity for a label
                that is padding.
            none: logit of the label for no candidate, ``[…]``.
        """
        return log_scores(logits, none, self.temperature, self.length_power, self.none_bias)

    def logits_of(self, log_scores: Tensor, none: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The logits of which :meth:`log_scores` made scores of one list, up to a constant.

        Args:
            log_scores: logarithms of the labels' scores, ``[k]``.
            none: logarithm of none's share, a scalar; None where there is none.
        Returns:
            Logits ``[k]``, and none's, which is NaN without one.
        """
        divisor = self.temperature * (len(log_scores) / REFERENCE) ** self.length_power
        nothing = torch.tensor(torch.nan, dtype=torch.float64)
        of_none = nothing if none is None else none * divisor - self.none_bias
        return log_scores * divisor, of_none


@dataclass(frozen=True)
class ScoreCalibration:
    """Calibration of a checkpoint; ``reason`` is None where it was not fitted for reason mode."""

    fast: ModeCalibration = ModeCalibration()
    reason: ModeCalibration | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ScoreCalibration:
        """Reads what :meth:`to_dict` gives.

        Raises:
            ValueError: an unknown field, or a value out of range.
        """
        try:
            modes = {name: one and ModeCalibration(**one) for name, one in values.items()}
            return cls(**modes)
        except TypeError as error:
            raise ValueError(f"calibration in the config: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """As values of JSON."""
        return asdict(self)

    def of_mode(self, mode: str) -> ModeCalibration:
        """The calibration of ``reason`` or ``fast``; that of fast where reason has none."""
        return self.reason if mode == "reason" and self.reason is not None else self.fast
