"""Stages ``lists`` and ``sft``: compressed lists, then chains of thought with inspections.

Compressor and language model learn together; the tower is frozen. Lists grow longer and harder.
Some are read at full length, so that the full-token baseline is the same model, trained for it.
``lists`` trains direct answers to lists only (``reason: 0``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retrv_r1.train.adapters import adapt, train_new_tokens
from retrv_r1.train.config import ConfigError
from retrv_r1.train.corpus import Entry
from retrv_r1.train.initialize import keep_agreement
from retrv_r1.train.lists import ListBatch, ListCollator
from retrv_r1.train.losses import run_lists
from retrv_r1.train.memory import freeze_resemblance, initialize_memory
from retrv_r1.train.naming import SCALE
from retrv_r1.train.sampling import ListSampler, with_default_instruction
from retrv_r1.train.stage import Setup, Stage
from retrv_r1.train.validation import ListValidation


@dataclass(frozen=True)
class SFTConfig:
    """Options of the stage.

    Args:
        rows: candidates per step, distributed over lists of the step's size.
        sizes: sizes of compressed lists, drawn at random from the first few; the longer ones join
            one by one during the share ``grow`` of training.
        full_sizes: sizes of lists at full length.
        full_every: period in steps of the lists at full length.
        share: lists that have the same candidates.
        grow: share of training in which lists grow longer and harder.
        hard: final hardness of negatives, 0 to 1 (``sampling.py``), growing from 0.
        inspections: whether chains have inspections; a model trained without them has none.
        reason: share of compressed lists with a chain of thought.
        full_reason: share of lists at full length with a chain of thought.
        default_instruction: share of lists with the checkpoint's own, short instruction.
        answer_weight: weight of the loss on answers, beside their share of that on all tokens.
        match_weight: weight of the loss on matches (``losses.py``).
        pointer_weight: weight of the contrastive losses on states (``losses.py``).
        content_weight: weight of that on content tokens.
        likeness_weight: weight of what content tokens say of the answers (``losses.py``).
        naming_weight: weight of the losses on names (``naming.py``).
        names: names per step that are negatives of all.
        descriptions: pictures named per step from their content tokens.
        description_weight: weight of the loss on these names.
        ideals: text queries per step that are read without a list, and whose ideal is written.
        wordings: share of the queries by a name that are worded as people type.
        validation: queries of each cell in a validation.
        lora: rank of LoRA on the language model's linear layers, with the embeddings of our own
            tokens; 0 trains all of its weights.
        memory: number of things in the compressor's memory, which is added to a model that has none
            (``memory.py``); what decides which of them a token resembles is frozen then.
        unanswered: final share of lists without their answer, growing from 0.
        views: views of a picture that are kept, all but the first augmented; 0 keeps none, and
            computes the rows of pictures as they are at every step.
        max_text: tokens to which an item's text is cut.
        steps: steps in all; the loop's ``steps`` by default.
    """

    rows: int = 480
    sizes: tuple[int, ...] = (8, 16, 32, 50)
    full_sizes: tuple[int, ...] = (8, 16, 32, 50)
    full_every: int = 5
    share: int = 4
    grow: float = 0.4
    hard: float = 1.0
    inspections: bool = True
    reason: float = 0.5
    full_reason: float = 0.3
    default_instruction: float = 0.5
    answer_weight: float = 1.0
    match_weight: float = 1.0
    pointer_weight: float = 1.0
    content_weight: float = 1.0
    likeness_weight: float = 0.0
    naming_weight: float = 0.5
    names: int = 2048
    descriptions: int = 0
    description_weight: float = 1.0
    ideals: int = 0
    wordings: float = 0.7
    validation: int = 25
    lora: int = 0
    memory: int = 0
    unanswered: float = 0.15
    views: int = 2
    max_text: int = 12
    steps: int = 1


class SFTStage(Stage):
    """Cross-entropy of chains and answers, with the auxiliary losses of ``losses.py``."""

    Config = SFTConfig
    config: SFTConfig

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        corpus, config = setup.train, self.config
        self.model, self.processor = model, processor = setup.reranker()
        self.embedder = setup.first_stage
        self.named = setup.named
        self.sampler = ListSampler(corpus, setup.ranking(corpus), self.named, config.wordings)
        self.collator = ListCollator(processor, config.max_text, config.inspections)
        if not config.inspections:
            model.config.max_inspections = 0
        known = setup.ranking(setup.val)
        self.validation = ListValidation(setup.val, known, self.collator, queries=config.validation)
        self.bank = setup.row_source(model.visual, processor.image_processor, config.views)
        if config.memory > 0 and model.icm.memory is None:
            initialize_memory(model, processor, self.named, self.bank.clean, config.memory)
        self.naming = self.add_auxiliary("naming", setup.naming(model.config.hidden_size))
        self._adapted = None
        if config.lora:
            self._adapted = adapt(model, config.lora)
            if setup.config.loop.weight_decay:
                raise ConfigError(
                    f"{setup.config.source}: with stage.lora set loop.weight_decay to 0, which "
                    "would shrink the embeddings that are not trained"
                )
            train_new_tokens(model, processor.tokenizer)
        else:
            model.requires_grad_(True)
        model.icm.requires_grad_(True)
        self.naming.requires_grad_(True)
        model.freeze_towers()
        freeze_resemblance(model)
        keep_agreement(model)

    def batch(self, step: int) -> dict[str, Any]:
        config = self.config
        about, rng = self.draws(step)
        progress = min(1.0, self.position(step) / (config.grow * config.steps))
        full = step % config.full_every == config.full_every - 1
        sizes = config.full_sizes if full else config.sizes
        size = sizes[int(about.integers(1 + int(progress * (len(sizes) - 1))))]
        count = max(1, config.rows // (size * (4 if full else 1)))
        hard = config.hard * progress
        # Before a model can tell what fits, "nothing does" is the answer that it learns.
        self.sampler.unanswered = config.unanswered * progress
        lists = self.sampler.draw(rng, count, size, hard, share=config.share)
        lists = with_default_instruction(lists, rng, config.default_instruction)
        # Chains or direct answers, not both, in one batch: less padding, and separate metrics.
        reasoned = bool(about.random() < (config.full_reason if full else config.reason))
        batch = self.collator.collate(lists, rng, reason=float(reasoned), full_tokens=full)
        kind = ("full_" if full else "") + ("reason_" if reasoned else "")
        made: dict[str, Any] = {
            "lists": batch,
            "views": self.bank.draw(batch.pictures, rng),
            "things": torch.tensor(self.named.things(lists)),
            "others": torch.from_numpy(rng.integers(len(self.named.names), size=config.names)),
            "kind": kind,
        }
        if config.descriptions:
            drawn = self.named.draw(rng, config.descriptions)
            entries = [Entry(None, picture, {}) for picture in drawn.pictures]
            names = [self.named.names[thing] for thing in drawn.things]
            made["tell"] = self.collator.describe(entries, names, full_tokens=False)
            made["tell_views"] = self.bank.draw(made["tell"].pictures, rng)
        if config.ideals:
            typed = self.named.draw(rng, config.ideals).texts
            if said := [text for text in typed if self.collator.can_repeat(text)]:
                made["ideals"] = self.collator.ideals(said)
        return made

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        lists: ListBatch = batch["lists"]
        out = run_lists(self.model, lists, self.bank.rows_of(batch["views"]))
        token_loss = out.token_loss()
        match_loss, match_hits = out.match_loss(self.processor.tokens.answer_start)
        answer_loss, answer_hits = out.answer_loss()
        pointer_loss, pointer_hits = out.pointer_loss()
        lookup_loss, lookup_hits = out.lookup_loss()
        content_loss, content_hits = out.content_loss()
        things = batch["things"].repeat(2)
        states = torch.cat([*out.ends(), *out.contents(out.content)])
        name_loss, name_hits = self.naming.losses(
            torch.nn.functional.normalize(states, dim=-1), things, SCALE, batch["others"]
        )
        config = self.config
        loss = token_loss + config.answer_weight * answer_loss + config.match_weight * match_loss
        loss = loss + config.pointer_weight * (pointer_loss + lookup_loss)
        loss = loss + config.content_weight * content_loss + config.naming_weight * name_loss
        metrics = {}
        if config.likeness_weight:
            likeness_loss = out.likeness_loss()
            loss = loss + config.likeness_weight * likeness_loss
            metrics["likeness_loss"] = likeness_loss.item()
        if "tell" in batch:
            told = run_lists(self.model, batch["tell"], self.bank.rows_of(batch["tell_views"]))
            told_loss = told.token_loss()
            loss = loss + config.description_weight * told_loss
            metrics["content_name_loss"] = told_loss.item()
        if "ideals" in batch:
            ideal_loss = run_lists(self.model, batch["ideals"], None).token_loss()
            loss = loss + ideal_loss
            metrics["ideal_loss"] = ideal_loss.item()
        kind = batch["kind"]
        return loss, metrics | {
            f"{kind}token_loss": token_loss.item(),
            f"{kind}answer_accuracy": answer_hits,
            "match_accuracy": match_hits,
            "pointer_accuracy": pointer_hits,
            "lookup_accuracy": lookup_hits,
            "content_accuracy": content_hits,
            "naming_accuracy": float(name_hits),
            "samples": len(lists.input_ids),
            "tokens": lists.tokens,
        }

    def validate(self) -> dict[str, float]:
        return self.validation.run(self.model)

    def save(self, out: Path) -> None:
        if self._adapted is not None:
            self._adapted = self._adapted.merge_and_unload()
        super().save(out)
        if self.embedder is not None:
            self.embedder.save_pretrained(out / "embedder")
