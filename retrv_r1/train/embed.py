"""Stage ``embed``: trains the first stage, contrastively over queries and their positives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrv_r1.model.embedder import RetrvEmbedder
from retrv_r1.train.config import checked
from retrv_r1.train.corpus import Cell, Corpus, used_pictures
from retrv_r1.train.entry_vectors import EntryEmbedder
from retrv_r1.train.stage import Setup, Stage
from retrv_r1.train.tiny import EmbedderShape, new_embedder, texts_of


@dataclass(frozen=True)
class EmbedConfig:
    """Options of the stage.

    Args:
        batch: pairs per step; the negatives of a pair are the other pairs of its cell.
        cells_per_batch: cells that a step's pairs come from.
        max_text: tokens to which a text is cut.
        naming_weight: weight of a softmax over all concepts on every picture whose concept the
            data names; a tower learns faster from it than from a batch's negatives.
        weights: relative frequencies of cells by the last part of their names; 1 by default.
    """

    batch: int = 128
    cells_per_batch: int = 2
    max_text: int = 24
    naming_weight: float = 1.0
    weights: dict[str, float] = field(default_factory=dict)


def recall_at(queries: Tensor, pool: Tensor, positives: Sequence[np.ndarray], k: int) -> float:
    """Share of queries with a positive among their k nearest."""
    top = (queries @ pool.T).topk(min(k, len(pool)), dim=1).indices.cpu().numpy()
    return float(np.mean([np.isin(t, p).any() for t, p in zip(top, positives, strict=True)]))


class EmbedStage(Stage):
    """Symmetric InfoNCE; other known positives of a query are not negatives."""

    Config = EmbedConfig
    config: EmbedConfig
    model: RetrvEmbedder

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        shape = checked(EmbedderShape, setup.config.model, f"{setup.config.source}: model")
        model, self.tokenizer, self.processor = new_embedder(shape, texts_of(setup.train))
        setup.machine.prepare(model)
        self.model = model

        def embedder(corpus: Corpus) -> EntryEmbedder:
            return EntryEmbedder(
                model, self.tokenizer, self.processor, corpus, self.config.max_text
            )

        self.train, self.val = embedder(setup.train), embedder(setup.val)
        self.names = sorted(setup.train.cells)
        known = self.config.weights
        weights = np.array([known.get(name.split("_")[-1], 1.0) for name in self.names])
        self.weights = weights / weights.sum()
        bank = setup.train.bank
        shown = {name for row in used_pictures(setup.train) if (name := bank.concepts[row])}
        self.concepts = {name: number for number, name in enumerate(sorted(shown))}
        naming = torch.nn.Linear(model.config.vision_config.out_hidden_size, len(shown))
        self.naming = self.add_auxiliary("naming", naming.to(model.device))

    def batch(self, step: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        names = rng.choice(self.names, self.config.cells_per_batch, replace=False, p=self.weights)
        share = self.config.batch // len(names)
        queries, targets, block, positive = [], [], [], []
        for number, name in enumerate(names):
            cell: Cell = self.train.corpus.cells[name]
            rows = rng.choice(len(cell.queries), share, replace=len(cell.queries) < share)
            chosen = [int(rng.choice(cell.positives[row])) for row in rows]
            queries += [cell.queries[row] for row in rows]
            targets += [cell.pool[c] for c in chosen]
            block += [number] * share
            known = [set(cell.positives[row].tolist()) for row in rows]
            positive.append(torch.tensor([[c in k for c in chosen] for k in known]))
        same_cell = torch.tensor(block)
        return {
            "queries": self.train.inputs(queries, generator),
            "targets": self.train.inputs(targets, generator),
            "allowed": same_cell[:, None] == same_cell[None],
            "positive": torch.block_diag(*(p.float() for p in positive)).bool(),
        }

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        queries, query_rows = self.train.embed(batch["queries"])
        targets, target_rows = self.train.embed(batch["targets"])
        logits = self.model.logit_scale.clamp(max=4.0).exp() * queries @ targets.T
        own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(~batch["allowed"] | (batch["positive"] & ~own), -1e4)
        goal = torch.arange(len(logits), device=logits.device)
        cross_entropy = torch.nn.functional.cross_entropy
        loss = (cross_entropy(logits, goal) + cross_entropy(logits.T, goal)) / 2
        metrics = {"contrastive_loss": loss.item()}
        rows = [r for r in (query_rows, target_rows) if r is not None]
        if rows and self.concepts:
            shown = [*batch["queries"].get("concepts", ()), *batch["targets"].get("concepts", ())]
            known = [self.concepts.get(name, -100) for name in shown]
            names = torch.tensor(known, device=logits.device)
            named = self.naming(torch.cat(rows))
            naming_loss = cross_entropy(named, names, label_smoothing=0.1)
            loss = loss + self.config.naming_weight * naming_loss
            metrics["naming_accuracy"] = float((named.argmax(1) == names).float().mean())
        pictures = sum(len(batch[side].get("pictures", ())) for side in ("queries", "targets"))
        return loss, metrics | {
            "accuracy": float((logits.argmax(1) == goal).float().mean()),
            "samples": len(logits),
            "tokens": pictures * (self.train.side // self.processor.patch_size) ** 2
            + 2 * len(logits),
        }

    def validate(self) -> dict[str, float]:
        metrics = {}
        for name, cell in self.val.corpus.cells.items():
            queries, pool = self.val.embed_all(cell.queries), self.val.embed_all(cell.pool)
            short = name.split("_")[-1]
            metrics[f"val_r1_{short}"] = recall_at(queries, pool, cell.positives, 1)
            metrics[f"val_r50_{short}"] = recall_at(queries, pool, cell.positives, 50)
        return metrics

    def save(self, out: Path) -> None:
        super().save(out)
        self.tokenizer.save_pretrained(out)
