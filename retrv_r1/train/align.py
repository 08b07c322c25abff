"""Stage ``align``: self-alignment of the compressor.

Language model and tower are frozen. The model's output on the two tokens must match its output on
all rows: for the description of a candidate (from its content token alone) and for the choice from
a list. Content tokens also take the places of their names (``naming.py``) and come near those of
their queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retrv_r1.train.corpus import Entry
from retrv_r1.train.initialize import keep_agreement
from retrv_r1.train.lists import ListBatch, ListCollator
from retrv_r1.train.losses import ListOutput, run_lists
from retrv_r1.train.memory import freeze_resemblance
from retrv_r1.train.naming import SCALE
from retrv_r1.train.sampling import ListSampler
from retrv_r1.train.stage import Setup, Stage
from retrv_r1.train.validation import ListValidation


@dataclass(frozen=True)
class AlignConfig:
    """Options of the stage.

    Args:
        descriptions: pictures described per step.
        lists: lists per step.
        size: candidates of a list.
        share: lists that have the same candidates.
        hard: hardness of negatives, 0 to 1 (``sampling.py``).
        wordings: share of the queries by a name that are worded as people type.
        names: names per step that are negatives of all content tokens.
        naming_weight: weight of the losses on names (``naming.py``).
        match_weight: weight of the losses on matches and content tokens (``losses.py``).
        validation: queries of each cell in a validation.
        views: views of a picture that are kept, all but the first augmented; 0 keeps none, and
            computes the rows of pictures as they are at every step.
        max_text: tokens to which an item's text is cut.
    """

    descriptions: int = 64
    lists: int = 16
    size: int = 8
    share: int = 4
    hard: float = 0.9
    wordings: float = 0.7
    names: int = 2048
    naming_weight: float = 1.0
    match_weight: float = 1.0
    validation: int = 25
    views: int = 2
    max_text: int = 12


class AlignStage(Stage):
    """KL divergence of reading compressed candidates from reading them in full."""

    Config = AlignConfig
    config: AlignConfig

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        corpus, config = setup.train, self.config
        self.model, self.processor = model, processor = setup.reranker()
        self.named = setup.named
        self.sampler = ListSampler(corpus, setup.ranking(corpus), self.named, config.wordings)
        model.requires_grad_(False)
        model.icm.requires_grad_(True)
        freeze_resemblance(model)
        keep_agreement(model)
        self.collator = ListCollator(processor, config.max_text)
        self.bank = setup.row_source(model.visual, processor.image_processor, config.views)
        known = setup.ranking(setup.val)
        self.validation = ListValidation(
            setup.val, known, self.collator, config.size, config.validation
        )
        self.naming = self.add_auxiliary("naming", setup.naming(model.config.hidden_size))

    def batch(self, step: int) -> dict[str, Any]:
        config = self.config
        _, rng = self.draws(step)
        drawn = self.named.draw(rng, config.descriptions)
        chosen = [Entry(None, picture, {}) for picture in drawn.pictures]
        names = [self.named.names[thing] for thing in drawn.things]
        lists = self.sampler.draw(rng, config.lists, config.size, config.hard, share=config.share)
        label_seed = int(rng.integers(2**31))
        others = rng.integers(len(self.named.names), size=config.names)
        batch: dict[str, Any] = {
            "things": torch.from_numpy(drawn.things),
            "others": torch.from_numpy(others),
        }
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
        content_loss, content_hits = outs["lists_compressed"].content_loss()
        named = outs["describe_compressed"].content
        name_loss, name_hits = self.naming.losses(
            nn.functional.normalize(named, dim=-1), batch["things"], SCALE, batch["others"]
        )
        aided = self.config.match_weight * (match_loss + content_loss)
        aided = aided + self.config.naming_weight * name_loss
        return describe_loss + list_loss + aided, {
            "describe_divergence": describe_loss.item(),
            "list_divergence": list_loss.item(),
            "match_accuracy": match_hits,
            "content_accuracy": content_hits,
            "naming_accuracy": float(name_hits),
            "answer_accuracy": answer_hits,
            "full_accuracy": full_hits,
            "samples": len(batch["lists_full"].input_ids),
            "tokens": sum(b.tokens for b in batch.values() if isinstance(b, ListBatch)),
        }

    def validate(self) -> dict[str, float]:
        return self.validation.run(self.model)


def target_logits(out: ListOutput) -> Tensor:
    """Logits at the target tokens, ``[targets, vocabulary]``."""
    keep = out.batch.labels[:, 1:] != -100
    return out.head(out.hidden[:, :-1][keep])


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ student) in nats, averaged over rows."""
    log_p = nn.functional.log_softmax(teacher.float(), -1)
    log_q = nn.functional.log_softmax(student.float(), -1)
    return nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
