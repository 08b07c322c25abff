"""Stage ``align``: self-alignment of the compressor.

Language model and tower are frozen. The model's output on the two tokens must match its output on
all rows: for the description of a candidate (from its content token alone) and for the choice from
a list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retrv_r1.train.chains import describe
from retrv_r1.train.corpus import described_pictures, used_pictures
from retrv_r1.train.lists import ListCollator
from retrv_r1.train.losses import ListOutput, run_lists
from retrv_r1.train.sampling import ListSampler
from retrv_r1.train.stage import Setup, Stage
from retrv_r1.train.vision_rows import RowBank


@dataclass(frozen=True)
class AlignConfig:
    """Options of the stage.

    Args:
        descriptions: pictures described per step.
        lists: lists per step.
        size: candidates of a list.
        share: lists that have the same candidates.
        hard: hardness of negatives, 0 to 1 (``sampling.py``).
        views: views of a picture that are kept, all but the first augmented.
        max_text: tokens to which an item's text is cut.
    """

    descriptions: int = 64
    lists: int = 16
    size: int = 8
    share: int = 4
    hard: float = 0.5
    views: int = 3
    max_text: int = 12


class AlignStage(Stage):
    """KL divergence of reading compressed candidates from reading them in full."""

    Config = AlignConfig
    config: AlignConfig

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        corpus, config = setup.train, self.config
        self.model, self.processor = model, processor = setup.reranker()
        self.sampler = ListSampler(corpus, setup.vectors(corpus, processor))
        model.requires_grad_(False)
        model.icm.requires_grad_(True)
        self.collator = ListCollator(processor, config.max_text)
        self.pictures = described_pictures(corpus)
        self.bank = RowBank.build(
            model, processor, corpus.bank, used_pictures(corpus), config.views, self.seed
        )

    def batch(self, step: int) -> dict[str, Any]:
        config = self.config
        rng = np.random.default_rng([self.seed, step])
        chosen = [
            self.pictures[i] for i in rng.integers(len(self.pictures), size=config.descriptions)
        ]
        names = [describe(entry) for entry in chosen]
        lists = self.sampler.draw(rng, config.lists, config.size, config.hard, share=config.share)
        label_seed = int(rng.integers(2**31))
        batch: dict[str, Any] = {}
        for reading in ("full", "compressed"):
            full = reading == "full"
            batch[f"describe_{reading}"] = self.collator.describe(chosen, names, full_tokens=full)
            batch[f"lists_{reading}"] = self.collator.collate(
                lists, np.random.default_rng(label_seed), reason=0.0, full_tokens=full
            )
        batch["describe_views"] = self.bank.draw(batch["describe_full"].pictures, rng)
        batch["lists_views"] = self.bank.draw(batch["lists_full"].pictures, rng)
        return batch

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        outs: dict[str, ListOutput] = {}
        for task in ("describe", "lists"):
            rows = self.bank.rows_of(batch[f"{task}_views"])
            with torch.no_grad():
                outs[f"{task}_full"] = run_lists(self.model, batch[f"{task}_full"], rows)
            outs[f"{task}_compressed"] = run_lists(self.model, batch[f"{task}_compressed"], rows)
        describe_loss = divergence(
            target_logits(outs["describe_compressed"]), target_logits(outs["describe_full"])
        )
        list_loss = divergence(
            outs["lists_compressed"].answer_logits(), outs["lists_full"].answer_logits()
        )
        token = self.processor.tokens.answer_start
        match_loss, match_hits = outs["lists_compressed"].match_loss(token)
        _, answer_hits = outs["lists_compressed"].answer_loss()
        _, full_hits = outs["lists_full"].answer_loss()
        return describe_loss + list_loss + match_loss, {
            "describe_divergence": describe_loss.item(),
            "list_divergence": list_loss.item(),
            "match_accuracy": match_hits,
            "answer_accuracy": answer_hits,
            "full_accuracy": full_hits,
            "samples": len(batch["lists_full"].input_ids),
            "tokens": sum(b.tokens for k, b in batch.items() if not k.endswith("_views")),
        }


def target_logits(out: ListOutput) -> Tensor:
    """Logits at the target tokens, ``[targets, vocabulary]``."""
    keep = out.batch.labels[:, 1:] != -100
    return out.head(out.hidden[:, :-1][keep])


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ student) in nats, averaged over rows."""
    log_p = nn.functional.log_softmax(teacher.float(), -1)
    log_q = nn.functional.log_softmax(student.float(), -1)
    return nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
