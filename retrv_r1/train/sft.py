"""Stage ``sft``: activation on chains of thought with inspections, and on direct answers.

Compressor and language model learn together, the tower is frozen. Lists grow longer and harder;
some are read at full tokens, so that the full-token baseline is the same model at its best.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from retrv_r1.model.embedder import RetrvEmbedder
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.train.corpus import Corpus, ListSampler, used_pictures
from retrv_r1.train.embed import EntryEmbedder
from retrv_r1.train.features import FeatureBank
from retrv_r1.train.lists import ListBatch, ListCollator, Reading, run_lists
from retrv_r1.train.loop import Stage
from retrv_r1.train.pictures import side_of


@dataclass(frozen=True)
class SFTConfig:
    """Args:
    warm_steps, warm_rows, warm_size: first, many short lists answered at once, so that a step
        has many queries: what matches what is learned here.
    rows: candidates a step afterwards, shared out over lists of the step's size.
    sizes: list sizes of the compressed lists, growing over the first part of training.
    full_sizes: list sizes of the full-token lists; one step in ``full_every`` reads those.
    reason: share of lists with a chain of thought.
    hard: share of close negatives.
    match_weight, pointer_weight: of the auxiliary losses (``lists.py``).
    views: augmented views of a picture that are kept.
    max_text: tokens of an item's text that are read.
    steps: steps of the stage.
    """

    warm_steps: int = 0
    warm_rows: int = 512
    warm_size: int = 3
    rows: int = 320
    sizes: tuple[int, ...] = (8, 16, 32, 50)
    full_sizes: tuple[int, ...] = (8, 16, 32, 50)
    full_every: int = 5
    reason: float = 0.5
    hard: float = 0.6
    match_weight: float = 0.5
    pointer_weight: float = 1.0
    views: int = 5
    max_text: int = 24
    steps: int = 1


def mine(embedder: EntryEmbedder, corpus: Corpus, depth: int = 100) -> dict[str, np.ndarray]:
    """First-stage neighbours of every query, ``[queries, depth]`` pool numbers per cell."""
    cells = corpus.cells
    entries = [e for cell in cells.values() for e in (*cell.queries, *cell.pool)]
    sizes = [n for cell in cells.values() for n in (len(cell.queries), len(cell.pool))]
    parts = iter(embedder.embed_all(entries).split(sizes))
    mined = {}
    for name, cell in cells.items():
        queries, pool = next(parts), next(parts)
        top = (queries @ pool.T).topk(min(depth, len(cell.pool)), dim=1).indices
        mined[name] = top.numpy().astype(np.int32)
    return mined


class SFTStage(Stage):
    name = "sft"

    def __init__(
        self,
        model: RetrvR1ForConditionalGeneration,
        processor: RetrvR1Processor,
        embedder: RetrvEmbedder,
        corpus: Corpus,
        config: SFTConfig,
        seed: int,
    ) -> None:
        self.model, self.processor, self.corpus = model, processor, corpus
        self.embedder, self.config, self.seed = embedder, config, seed
        model.requires_grad_(True)
        model.visual.requires_grad_(False)
        side = side_of(processor.image_processor)
        rows = side // processor.image_processor.patch_size // 2
        self.collator = ListCollator(processor, (rows, rows), config.max_text)
        first_stage = EntryEmbedder(
            embedder, processor.tokenizer, processor.image_processor, corpus, max_text=24
        )
        self.sampler = ListSampler(corpus, mine(first_stage, corpus))
        self.bank = FeatureBank.build(
            model, processor, corpus.bank, used_pictures(corpus), config.views, seed
        )

    def batch(self, step: int) -> dict[str, Any]:
        config = self.config
        rng = np.random.default_rng([self.seed, step])
        if step < config.warm_steps:
            count = config.warm_rows // config.warm_size
            lists = [self.sampler.draw(rng, config.warm_size, 0.0) for _ in range(count)]
            # The default instruction is the shortest: more queries for the same rows.
            lists = [replace(example, instruction="") for example in lists]
            batch = self.collator.collate(lists, rng, reason=0.0)
            return {"lists": batch, "rows": self.bank.draw(batch.pictures, rng), "full": False}
        full = step % config.full_every == config.full_every - 1
        sizes = config.full_sizes if full else config.sizes
        # The longest size is open from a third of the remaining training on.
        progress = min(1.0, 3 * (step - config.warm_steps) / (config.steps - config.warm_steps))
        size = sizes[int(rng.integers(1 + int(progress * (len(sizes) - 1))))]
        reading: Reading = "full" if full else "compressed"
        count = max(1, config.rows // (size * (4 if full else 1)))
        hard = config.hard * progress * float(rng.uniform(0.3, 1.0))
        lists = [self.sampler.draw(rng, size, hard) for _ in range(count)]
        batch = self.collator.collate(
            lists, rng, reason=0.2 if full else config.reason, reading=reading
        )
        return {"lists": batch, "rows": self.bank.draw(batch.pictures, rng), "full": full}

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        lists: ListBatch = batch["lists"]
        out = run_lists(self.model, lists, batch["rows"])
        token_loss = out.token_loss()
        match_loss, match_hits = out.match_loss(self.processor.tokens.answer_start)
        answer_loss, answer_hits = out.answer_loss()
        prefix = "full_" if batch["full"] else ""
        pointer_loss, pointer_hits = out.pointer_loss()
        content_loss, content_hits = out.content_loss()
        loss = token_loss + answer_loss + self.config.match_weight * match_loss
        loss = loss + self.config.pointer_weight * (pointer_loss + content_loss)
        return loss, {
            f"{prefix}token_loss": float(token_loss),
            f"{prefix}answer_loss": float(answer_loss),
            f"{prefix}match_accuracy": match_hits,
            f"{prefix}pointer_accuracy": pointer_hits,
            f"{prefix}content_accuracy": content_hits,
            f"{prefix}answer_accuracy": answer_hits,
            "tokens": lists.tokens,
        }

    def save(self, out: Path) -> None:
        self.model.save_pretrained(out)
        self.processor.save_pretrained(out)
        self.embedder.save_pretrained(out / "embedder")
