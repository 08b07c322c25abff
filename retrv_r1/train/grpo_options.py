"""Options of the stage ``grpo``."""

from __future__ import annotations

from dataclasses import dataclass

_LEAST = {
    "prompts": 1,
    "group": 2,
    "batch": 1,
    "share": 1,
    "epsilon": 0,
    "kl": 0,
    "lora": 0,
    "bound": 0,
    "seconds": 0,
    "validation": 0,
}


@dataclass(frozen=True)
class GRPOOptions:
    """Options of the stage.

    Args:
        prompts: lists per step.
        group: rollouts of each list.
        batch: rollouts that are read at once; it must divide those of a step.
        sizes: sizes of lists, drawn at random for each step.
        share: lists that have the same candidates.
        hard: hardness of negatives, 0 to 1 (``sampling.py``).
        wordings: share of the queries by a name that are worded as people type.
        default_instruction: share of lists with the checkpoint's own, short instruction.
        temperature, top_p, max_reasoning_tokens, max_inspections: sampling of the rollouts.
        price: how λ grows: ``linear``, ``cosine`` or ``constant``.
        constant: λ of ``constant``.
        truncated: what a truncated rollout's answer earns: ``zero``, ``count``, or ``mask``, which
            also leaves the whole rollout out of the loss.
        format_weight, result_weight, margin_weight: weights of the rewards; 0 leaves one out.
        epsilon: clipping range of the probability ratio.
        kl: weight of the divergence from the model that training starts from.
        loss: TRL's ``loss_type``; ``grpo`` is the paper's.
        lora: rank of LoRA on the language model's linear layers; 0 trains all of its weights.
        compressor: whether the compressor is trained as well.
        correction, cap: truncated importance weights, see ``rollout/correction.py``.
        bound: mean difference of engine and policy, in nats, that stops training.
        seconds: time limit of a step's rollouts; those that are late are empty. 0 for none.
        validation: lists of each validation, answered greedily.
        max_text: tokens to which an item's text is cut.
    """

    prompts: int = 4
    group: int = 8
    batch: int = 8
    sizes: tuple[int, ...] = (16, 32, 50)
    share: int = 2
    hard: float = 1.0
    wordings: float = 0.7
    default_instruction: float = 0.5
    temperature: float = 1.0
    top_p: float = 1.0
    max_reasoning_tokens: int = 96
    max_inspections: int = 3
    price: str = "linear"
    constant: float = 0.5
    truncated: str = "zero"
    format_weight: float = 0.5
    result_weight: float = 1.0
    margin_weight: float = 0.0
    epsilon: float = 0.2
    kl: float = 0.0
    loss: str = "grpo"
    lora: int = 0
    compressor: bool = True
    correction: str = "token"
    cap: float = 2.0
    bound: float = 1e-3
    seconds: float = 0.0
    validation: int = 48
    max_text: int = 12

    def check(self) -> None:
        """Raises ValueError for values that cannot be trained with."""
        for name, least in _LEAST.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not self.sizes or min(self.sizes) < 2:
            raise ValueError(f"sizes must be of 2 candidates or more, not {list(self.sizes)}")
        if not (self.format_weight or self.result_weight or self.margin_weight):
            raise ValueError("no reward has a weight: set result_weight")
        if self.prompts * self.group % self.batch:
            rollouts = self.prompts * self.group
            raise ValueError(f"batch {self.batch} does not divide {rollouts} rollouts")
