"""Stage ``pretrain``: makes the tiny backbone, which no official checkpoint exists for.

Two tasks at full tokens, no compression: describe a picture, and pick from a list. The tower
comes from the embed stage and goes on learning. Official Qwen-VL checkpoints skip this stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.train.chains import describe
from retrv_r1.train.corpus import Corpus, Entry, ListSampler
from retrv_r1.train.lists import ListBatch, ListCollator, run_lists
from retrv_r1.train.loop import Stage
from retrv_r1.train.pictures import augment, side_of, to_patches


@dataclass(frozen=True)
class PretrainConfig:
    """Args:
    descriptions: pictures described a step.
    lists: lists a step; ``sizes`` candidates each, growing from the first to the last size.
    hard: share of close negatives at the end, growing from 0.
    match_weight, pointer_weight: of the two auxiliary losses (``lists.py``).
    """

    descriptions: int = 64
    lists: int = 16
    sizes: tuple[int, ...] = (3, 4, 6, 8)
    hard: float = 0.5
    match_weight: float = 1.0
    pointer_weight: float = 1.0
    steps: int = 1


class PretrainStage(Stage):
    name = "pretrain"

    def __init__(
        self,
        model: RetrvR1ForConditionalGeneration,
        processor: RetrvR1Processor,
        corpus: Corpus,
        config: PretrainConfig,
        seed: int,
    ) -> None:
        self.model, self.processor, self.corpus = model, processor, corpus
        self.config, self.seed = config, seed
        self.side = side_of(processor.image_processor)
        rows = self.side // processor.image_processor.patch_size // 2
        self.collator = ListCollator(processor, (rows, rows))
        self.sampler = ListSampler(corpus)
        self.pictures = described_pictures(corpus)
        model.icm.requires_grad_(False)

    def batch(self, step: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        config, progress = self.config, min(1.0, step / (0.8 * self.config.steps))
        chosen = [
            self.pictures[i] for i in rng.integers(len(self.pictures), size=config.descriptions)
        ]
        size = config.sizes[min(int(progress * len(config.sizes)), len(config.sizes) - 1)]
        lists = [self.sampler.draw(rng, size, config.hard * progress) for _ in range(config.lists)]
        batches = {
            "describe": self.collator.describe(chosen, [describe(e) for e in chosen], "full"),
            "lists": self.collator.collate(lists, rng, reason=0.0, reading="full"),
        }
        used = [row for batch in batches.values() for row in batch.pictures]
        image = augment(self.corpus.bank.rgba(used), self.side, generator)
        pixels, grid = to_patches(image, self.processor.image_processor, self.side)
        return {**batches, "pixels": pixels, "grid": grid}

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        rows = self.model.encode_pictures(batch["pixels"], batch["grid"])
        described: ListBatch = batch["describe"]
        lists: ListBatch = batch["lists"]
        each = self.collator.grid[0] * self.collator.grid[1]
        first, second = rows.split([each * len(described.pictures), each * len(lists.pictures)])
        describe_loss = run_lists(self.model, described, first).token_loss()
        out = run_lists(self.model, lists, second)
        list_loss, answer_hits = out.answer_loss()
        match_loss, match_hits = out.match_loss(self.processor.tokens.answer_start)
        tags = out.token_loss()
        pointer_loss, pointer_hits = out.pointer_loss()
        loss = describe_loss + list_loss + tags + self.config.match_weight * match_loss
        loss = loss + self.config.pointer_weight * pointer_loss
        return loss, {
            "describe_loss": float(describe_loss),
            "list_loss": float(list_loss),
            "match_accuracy": match_hits,
            "pointer_accuracy": pointer_hits,
            "answer_accuracy": answer_hits,
            "tokens": described.tokens + lists.tokens + len(batch["pixels"]),
        }

    def save(self, out: Path) -> None:
        self.model.save_pretrained(out)
        self.processor.save_pretrained(out)


def described_pictures(corpus: Corpus) -> list[Entry]:
    """Every distinct picture of the pools that has a name, as an entry without text."""
    seen: dict[int, Entry] = {}
    for cell in corpus.cells.values():
        for entry in cell.pool:
            if entry.picture is not None and entry.meta.get("name"):
                seen.setdefault(entry.picture, Entry(None, entry.picture, entry.meta))
    return list(seen.values())
