"""What each variant changes in the recipe, and what the paper reports of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ORDER = ("align", "lists", "sft", "grpo")
"""Stages that variants are trained in, as far as a recipe has them."""
CHAINS = ("lists", "sft")


@dataclass(frozen=True)
class Variant:
    """A recipe with one thing changed.

    Attributes:
        title: what the table calls it.
        without: stages that it leaves out.
        options: changed options of stages.
        prompts: changed templates, from its first stage on.
        full_tokens: whether candidates are read at full length.
        paper: R@5 in the paper, on CIRR and on OVEN, in %, for the 3B; None where it has none.
        remark: what is not as in the paper.
    """

    title: str
    without: tuple[str, ...] = ()
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    prompts: Mapping[str, str] = field(default_factory=dict)
    full_tokens: bool = False
    paper: tuple[float | None, float | None] = (None, None)
    remark: str = ""


VARIANTS: dict[str, Variant] = {
    "full": Variant("full", paper=(67.9, 83.3)),
    "full-tokens": Variant(
        "full tokens instead of compression",
        without=("align", "grpo"),
        options={stage: {"full_every": 1} for stage in CHAINS},
        full_tokens=True,
        paper=(68.8, 84.4),
        remark="without reinforcement learning, because rollouts read compressed candidates",
    ),
    "no-content": Variant(
        "without t_con", prompts={"candidate": "<|relation|>"}, paper=(60.7, 77.6)
    ),
    "no-relation": Variant(
        "without t_rel", prompts={"candidate": "<|content|>"}, paper=(64.7, 80.7)
    ),
    "no-alignment": Variant("without self-alignment", without=("align",), paper=(64.3, 80.7)),
    "no-inspection": Variant(
        "without inspection",
        options={
            **{stage: {"inspections": False} for stage in CHAINS},
            "grpo": {"max_inspections": 0},
        },
        paper=(62.3, 78.1),
    ),
    "no-sft": Variant("without SFT", without=("sft",), paper=(63.0, 79.4)),
    "no-rl": Variant("without RL", without=("grpo",), paper=(61.1, 78.4)),
    "fixed-price": Variant(
        "fixed λ = 0.5",
        options={"grpo": {"price": "constant", "constant": 0.5}},
        paper=(66.6, None),
        remark="the paper gives the difference alone, -1.3, and not on what",
    ),
    "margin": Variant(
        "reward with margin",
        options={"grpo": {"margin_weight": 0.5}},
        remark="not in the paper",
    ),
    "frozen-compressor": Variant(
        "compressor frozen in RL",
        options={"grpo": {"compressor": False}},
        remark="not in the paper",
    ),
}
"""Variants by name, in the order of the table."""
