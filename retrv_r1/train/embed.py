"""Stage ``embed``: trains the first stage on queries with their positives, and on named pictures.

Pairs, and pictures with their texts, are contrasted within a step; a softmax over names
(``naming.py``) compares with thousands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrv_r1.model.conv_tower import ConvTower
from retrv_r1.model.embedder import RetrvEmbedder
from retrv_r1.train.augment import PicturePlan
from retrv_r1.train.config import checked
from retrv_r1.train.corpus import Corpus, Entry
from retrv_r1.train.entry_vectors import EntryEmbedder
from retrv_r1.train.stage import Setup, Stage
from retrv_r1.train.tiny import EmbedderShape, load_preprocessing, new_embedder, texts_of
from retrv_r1.train.vision_rows import picture_rows


@dataclass(frozen=True)
class EmbedConfig:
    """Options of the stage.

    Args:
        batch: pairs per step; the negatives of a pair are the other pairs of its cell.
        cells_per_batch: cells that a step's pairs come from.
        named: named pictures per step.
        texts: further texts per step, each of any thing, without a picture of it.
        names: names per step that are negatives of all pictures and texts.
        naming_weight: weight of the softmax over names.
        max_text: tokens to which a text is cut.
        small_side, small_share: side of pictures in the first part of training, and the share of
            it. A convolutional tower sees more pictures in the same time if they are smaller.
        row_size: RMS that the result's tower rows have. Training leaves them many times larger than
            what a layer of a language model adds, so that no layer could change them.
        weights: relative frequencies of cells by the last part of their names; 1 by default.
        steps: steps in all; the loop's ``steps`` by default.
    """

    batch: int = 64
    cells_per_batch: int = 2
    named: int = 128
    texts: int = 128
    names: int = 4096
    naming_weight: float = 1.0
    max_text: int = 24
    small_side: int = 48
    small_share: float = 0.0
    row_size: float = 0.1
    weights: dict[str, float] = field(default_factory=dict)
    steps: int = 1


def recall_at(queries: Tensor, pool: Tensor, positives: Sequence[np.ndarray], k: int) -> float:
    """Share of queries with a positive among their k nearest."""
    top = (queries @ pool.T).topk(min(k, len(pool)), dim=1).indices.cpu().numpy()
    return float(np.mean([np.isin(t, p).any() for t, p in zip(top, positives, strict=True)]))


class EmbedStage(Stage):
    """Symmetric InfoNCE over pairs of cells and named pictures, and a softmax over names."""

    Config = EmbedConfig
    config: EmbedConfig
    model: RetrvEmbedder

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.named = setup.named
        if "embed" in setup.config.init:
            path = setup.result("embed")
            model = RetrvEmbedder.from_pretrained(path, dtype=torch.float32)
            self.tokenizer, self.processor = load_preprocessing(path)
        else:
            shape = checked(EmbedderShape, setup.config.model, f"{setup.config.source}: model")
            texts = [*texts_of(setup.train), *self.named.vocabulary()]
            model, self.tokenizer, self.processor = new_embedder(shape, texts)
        # Texts of a few tokens: the gradient of PyTorch's fused attention takes ten times as long.
        model.text.set_attn_implementation("eager")
        setup.machine.prepare(model)
        self.model = model

        def embedder(corpus: Corpus) -> EntryEmbedder:
            return EntryEmbedder(
                model, self.tokenizer, self.processor, corpus, self.config.max_text
            )

        self.train, self.val = embedder(setup.train), embedder(setup.val)
        self.cells = sorted(setup.train.cells)
        known = self.config.weights
        weights = np.array([known.get(name.split("_")[-1], 1.0) for name in self.cells])
        self.weights = weights / weights.sum()
        self.naming = self.add_auxiliary("naming", setup.naming(model.config.embedding_dim))

    def batch(self, step: int) -> dict[str, Any]:
        config = self.config
        _, rng = self.draws(step)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        cells = rng.choice(self.cells, config.cells_per_batch, replace=False, p=self.weights)
        pairs = [self._pairs(name, config.batch // len(cells), rng) for name in cells]
        drawn = self.named.draw(rng, config.named)
        more = rng.integers(len(self.named.names), size=config.texts)
        texts = [*drawn.texts, *(self.named.any_text(int(thing), rng) for thing in more)]
        same_cell = torch.arange(len(cells)).repeat_interleave(config.batch // len(cells))
        things = torch.from_numpy(drawn.things)
        small = self.position(step) < config.small_share * config.steps
        return {
            "queries": self.train.inputs([q for pair in pairs for q in pair[0]], generator),
            "targets": self.train.inputs([t for pair in pairs for t in pair[1]], generator),
            "rivals": (same_cell[:, None] == same_cell)
            & ~torch.block_diag(*(pair[2] for pair in pairs)).bool(),
            "pictures": self.train.inputs([Entry(None, p, {}) for p in drawn.pictures], generator),
            "texts": self.train.inputs([Entry(text, None, {}) for text in texts], generator),
            "things": torch.cat([things, things, torch.from_numpy(more)]),
            "named": len(things),
            "others": torch.from_numpy(rng.integers(len(self.named.names), size=config.names)),
            "side": config.small_side if small else self.train.side,
        }

    def _pairs(
        self, name: str, count: int, rng: np.random.Generator
    ) -> tuple[list[Entry], list[Entry], Tensor]:
        """Queries of a cell, a positive of each, and which are positives of which ``[n, n]``."""
        cell = self.train.corpus.cells[name]
        rows = rng.choice(len(cell.queries), count, replace=len(cell.queries) < count)
        chosen = [int(rng.choice(cell.positives[row])) for row in rows]
        known = [set(cell.positives[row].tolist()) for row in rows]
        positive = torch.tensor([[c in k for c in chosen] for k in known])
        return [cell.queries[row] for row in rows], [cell.pool[c] for c in chosen], positive.float()

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        side, count = batch["side"], batch["named"]
        things = batch["things"][:count]
        scale = self.model.logit_scale.clamp(max=4.0).exp()
        # One call for all pictures: the tower's batch norm sees one batch.
        parts = [batch[name] for name in ("queries", "targets", "pictures", "texts")]
        queries, targets, pictures, texts = self.train.embed_parts(parts, side)
        pair_loss, pair_hits = contrast_pairs(scale * queries @ targets.T, batch["rivals"])
        text_logits = scale * pictures @ texts[:count].T
        text_loss, text_hits = contrast_pairs(text_logits, things[:, None] != things)
        name_loss, name_hits = self.naming.losses(
            torch.cat([pictures, texts]), batch["things"], scale, batch["others"]
        )
        loss = pair_loss + text_loss + self.config.naming_weight * name_loss
        shown = sum(len(part.get("pictures", ())) for part in parts)
        patches = (side // self.processor.patch_size) ** 2 if self.train.rows is None else 0
        return loss, {
            "pair_loss": pair_loss.item(),
            "text_loss": text_loss.item(),
            "naming_loss": name_loss.item(),
            "pair_accuracy": pair_hits,
            "text_accuracy": text_hits,
            "naming_accuracy": float(name_hits),
            "samples": shown,
            "tokens": shown * patches + 2 * len(texts),
        }

    def validate(self) -> dict[str, float]:
        metrics = {}
        self.model.eval()  # the Trainer makes it train again
        for name, cell in self.val.corpus.cells.items():
            queries, pool = self.val.embed_all(cell.queries), self.val.embed_all(cell.pool)
            # Cells of two data sets may differ in their first word alone.
            short = name.removeprefix("pictographs_")
            metrics[f"val_r1_{short}"] = recall_at(queries, pool, cell.positives, 1)
            metrics[f"val_r50_{short}"] = recall_at(queries, pool, cell.positives, 50)
        return metrics

    def save(self, out: Path) -> None:
        if next(self.model.visual.parameters()).requires_grad:
            self._scale_rows()
        super().save(out)
        self.tokenizer.save_pretrained(out)

    @torch.no_grad()
    def _scale_rows(self) -> None:
        """Gives tower rows the RMS ``row_size``; vectors stay what they are."""
        bank, visual = self.train.corpus.bank, self.model.visual
        shown = self.named.pictures[:: max(1, len(self.named.pictures) // 512)]
        image = PicturePlan.of(shown.tolist()).render(bank, self.train.side)
        rows = picture_rows(visual, image, self.processor)
        scale = self.config.row_size / float(rows.pow(2).mean().sqrt())
        last = visual.out if isinstance(visual, ConvTower) else visual.merger.mlp[-1]
        last.weight.mul_(scale)
        last.bias.mul_(scale)
        self.model.picture_projection.weight.div_(scale)


def contrast_pairs(logits: Tensor, rivals: Tensor) -> tuple[Tensor, float]:
    """Symmetric InfoNCE of pairs ``[n, n]``, and the share whose own has the highest logit.

    Args:
        rivals: which are negatives of which; the diagonal does not count.
    """
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(~(rivals | own), -1e4)
    goal = torch.arange(len(logits), device=logits.device)
    cross_entropy = torch.nn.functional.cross_entropy
    loss = (cross_entropy(logits, goal) + cross_entropy(logits.T, goal)) / 2
    return loss, float((logits.argmax(1) == goal).float().mean())
