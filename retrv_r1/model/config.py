"""Configuration of a Retrv-R1 checkpoint: backbone, compression, prompts, scores."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from transformers import AutoConfig, BertConfig, PretrainedConfig

from retrv_engine import Sampling
from retrv_r1.model.calibration import ModeCalibration, ScoreCalibration
from retrv_r1.model.conv_tower import ConvTowerConfig

# Stored with the checkpoint, so that every engine and client ranks with the same prompts.
DEFAULT_PROMPTS: dict[str, str] = {
    "before_instruction": (
        "<|im_start|>system\nYou rerank candidates for a query. Each candidate is shown as a "
        "label and two compressed tokens. Reason between <think> and </think>: guess the ideal "
        "result, rule out easy negatives, examine the hard candidates; to see a candidate in "
        "full write <inspection-index-start>, its label, <inspection-index-end>. Then give the "
        "label of the best candidate between <answer> and </answer>.<|im_end|>\n"
        "<|im_start|>user\n"
    ),
    "instruction": "Find the candidate that matches the query.",
    "before_query": "\nQuery: ",
    "before_candidates": "\nCandidates:",
    # What stands behind a candidate's label: these two tokens are places of its compressed rows.
    "candidate": "<|content|><|relation|>",
    "after_candidates": "\nWhich candidate fits best?<|im_end|>\n<|im_start|>assistant\n",
    "before_candidate": "\nCandidate: ",
    "after_candidate": (
        "\nDoes the candidate match the query? Answer yes or no.<|im_end|>\n<|im_start|>assistant\n"
    ),
    "yes": "yes",
    "no": "no",
    "before_item": "<|im_start|>user\n",
    "after_item": "\nDescribe this.<|im_end|>\n<|im_start|>assistant\n",
}


@dataclass(frozen=True)
class ICMConfig:
    """Shape of the information compression module (Retrv-R1, arXiv 2510.02745; ``icm.py``).

    Args:
        heads_pool: heads of ATT₁, the pooling attention.
        heads_relate: heads of ATT₂, candidate rows attending to query rows.
        relate_dim: width of ATT₂'s queries and keys; None means a quarter of the hidden size.
        norm_relation: whether the rows of R are RMS-normed before they are pooled.
        separate_relation_pool: whether the relation token has its own ATT₁ and embedding.
        memory_size: number of prototypes of the memory for content tokens; 0 for none, as in the
            paper.
        memory_width: width of the memory's codes; None means half the hidden size.
        memory_rank: number of directions in which prototypes differ; None means all.
        memory_temperature: temperature of the memory's softmax over cosines.
        agreement: whether the agreement of the content tokens of candidate and query is added to
            the relation token, which the paper does not do.
        norm_eps: epsilon of every RMSNorm in the module.
    """

    heads_pool: int = 4
    heads_relate: int = 8
    relate_dim: int | None = None
    norm_relation: bool = True
    separate_relation_pool: bool = False
    memory_size: int = 0
    memory_width: int | None = None
    memory_rank: int | None = None
    memory_temperature: float = 0.06
    agreement: bool = False
    norm_eps: float = 1e-6


class RetrvR1Config(PretrainedConfig):
    """A backbone's config plus what Retrv-R1 adds.

    Args:
        backbone_config: config of a vision-language backbone (Qwen2.5-VL today).
        icm: fields of :class:`ICMConfig`.
        prompts: templates that differ from ``DEFAULT_PROMPTS``, which has the keys.
        calibration: fields of :class:`ScoreCalibration`, fitted on validation lists: how logits of
            labels become scores in each mode.
        score_temperature, reason_temperature: temperatures of fast and of reason mode, in the
            place of ``calibration`` in older checkpoints.
        auto_threshold: confidence of the fast answer from which ``mode="auto"`` returns it
            instead of reasoning, fitted on validation lists; None for a checkpoint without one.
        max_inspections: default limit of inspections per request: as many as there are in the
            chains that the model was trained on.
        tower_config: config of a convolutional tower in place of the backbone's; None keeps that.
        text_tower_config: config of the text tower whose rows the compressor reads; None for token
            embeddings, as in the paper.
        pad_to_square: whether pictures are padded to squares before resizing, for a tower trained
            on squares.
    """

    model_type = "retrv_r1"
    sub_configs: ClassVar = {"backbone_config": AutoConfig}

    def __init__(
        self,
        backbone_config: PretrainedConfig | dict[str, Any] | None = None,
        icm: dict[str, Any] | None = None,
        prompts: dict[str, str] | None = None,
        calibration: dict[str, Any] | None = None,
        score_temperature: float | None = None,
        reason_temperature: float | None = None,
        auto_threshold: float | None = None,
        max_inspections: int = Sampling.max_inspections,
        tower_config: ConvTowerConfig | dict[str, Any] | None = None,
        text_tower_config: BertConfig | dict[str, Any] | None = None,
        pad_to_square: bool = False,
        **kwargs: Any,
    ) -> None:
        if isinstance(backbone_config, PretrainedConfig):
            backbone = backbone_config
        else:
            values = dict(backbone_config or {})
            backbone = AutoConfig.for_model(values.pop("model_type", "qwen2_5_vl"), **values)
        self.backbone_config = backbone
        self.icm = asdict(ICMConfig(**(icm or {})))
        self.prompts = {**DEFAULT_PROMPTS, **(prompts or {})}
        if auto_threshold is not None and not 0 <= auto_threshold <= 1:
            raise ValueError(f"auto_threshold must be in [0, 1], got {auto_threshold}")
        if max_inspections < 0:
            raise ValueError(f"max_inspections must be 0 or more, got {max_inspections}")
        if calibration is None:
            older = {"fast": score_temperature, "reason": reason_temperature}
            calibration = {
                mode: {"temperature": one} for mode, one in older.items() if one is not None
            }
        self.calibration = ScoreCalibration.of(calibration).to_dict()
        self.auto_threshold = auto_threshold
        self.max_inspections = max_inspections
        if isinstance(tower_config, dict):
            tower_config = ConvTowerConfig(**tower_config)
        self.tower_config = tower_config
        if isinstance(text_tower_config, dict):
            text_tower_config = BertConfig(**text_tower_config)
        self.text_tower_config = text_tower_config
        self.pad_to_square = pad_to_square
        kwargs.setdefault("tie_word_embeddings", backbone.tie_word_embeddings)
        super().__init__(**kwargs)

    def calibration_of(self, mode: str) -> ModeCalibration:
        """How logits become scores in a mode, ``reason`` or ``fast``."""
        return ScoreCalibration.of(self.calibration).of_mode(mode)

    @property
    def hidden_size(self) -> int:
        """Width of a feature row."""
        return self.backbone_config.get_text_config().hidden_size

    def get_text_config(self, *args: Any, **kwargs: Any) -> PretrainedConfig:
        return self.backbone_config.get_text_config()
