"""Stage ``pretrain``: makes the tiny backbone, which no official checkpoint exists for.

Tower, compressor and language model learn together what pictures and texts stand for
(``anchors.py``) and to pick from lists. All lists train the content tokens, which costs little
beside the tower; the language model reads first their queries alone, then, once content tokens say
something, some of the lists, mostly compressed. The tower comes from the embed stage, content
tokens and token embeddings begin by saying what the first stage's vectors say (``start.py``).
Official Qwen-VL checkpoints skip this stage.
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
from retrv_r1.train.anchors import Anchors, Concepts
from retrv_r1.train.chains import describe
from retrv_r1.train.corpus import Corpus, Entry, Key, used_pictures
from retrv_r1.train.features import clean_rows, square_rows
from retrv_r1.train.lists import ListBatch, ListCollator, PairBatch
from retrv_r1.train.loop import Stage
from retrv_r1.train.losses import pair_loss, pooled_tokens, run_lists
from retrv_r1.train.pictures import Augmentation, Shown, StyleMixer, side_of
from retrv_r1.train.sampling import ListSampler, Vectors, shortened, with_default_instruction
from retrv_r1.train.start import (
    fit_rows,
    fit_tokens,
    start_compressor,
    start_layers,
)
from retrv_r1.train.validation import ListValidation


@dataclass(frozen=True)
class PretrainConfig:
    """Args:
    lists: lists a step; they share candidates, so that there are about ``candidates`` in all.
    sizes: candidates of a list: the first of these until ``read_from``, then growing as they come.
    hard: how near negatives are (``sampling.py``), growing from 0 until ``grow`` of training.
    read: lists that the language model reads from step ``read_from`` on; before, it reads the
        queries of all lists. At full tokens in one step of ``full_every``, a fourth as many of at
        most ``full_size`` candidates.
    descriptions: pictures described a step.
    texts: further texts a step, for their content tokens alone.
    blend: share of pictures blended with the same thing in another style.
    clean: share of pictures that are not augmented.
    default_instruction: share of lists with the checkpoint's own, short instruction.
    start_steps: steps in which token embeddings are fitted to the first stage's texts.
    row_size: RMS that tower rows get. The embed stage leaves them at many times the size of what
        a layer adds, and no layer could change them.
    """

    lists: int = 64
    candidates: int = 160
    sizes: tuple[int, ...] = (16,)
    hard: float = 1.0
    grow: float = 0.5
    read: int = 16
    read_from: int = 0
    full_size: int = 6
    full_every: int = 5
    descriptions: int = 24
    texts: int = 256
    blend: float = 0.0
    clean: float = 0.5
    default_instruction: float = 0.6
    max_text: int = 12
    start_steps: int = 600
    row_size: float = 0.1
    steps: int = 1


class PretrainStage(Stage):
    name = "pretrain"

    def __init__(
        self,
        model: RetrvR1ForConditionalGeneration,
        processor: RetrvR1Processor,
        corpus: Corpus,
        vectors: dict[str, Vectors],
        validation: ListValidation,
        config: PretrainConfig,
        seed: int,
        *,
        fresh: bool = True,
    ) -> None:
        self.model, self.processor, self.corpus = model, processor, corpus
        self.sampler, self.validation = ListSampler(corpus, vectors), validation
        self.config, self.seed = config, seed
        self.side = side_of(processor.image_processor)
        self.patches = (self.side // processor.image_processor.patch_size) ** 2
        self.collator = ListCollator(processor, config.max_text)
        self.pictures = described_pictures(corpus)
        if not self.pictures:
            raise ValueError("no candidate picture has a name in metadata.jsonl to describe it by")
        self.mixer = StyleMixer(corpus.bank, used_pictures(corpus))
        self.concepts = Concepts(corpus)
        names = sorted(text for text, picture in self.concepts.of if text and picture is None)
        self.texts = [Entry(text, None, {}) for text in names]
        # Part of the model while it trains, so that checkpoints hold it; dropped at the end.
        model.anchors = Anchors.of(model, self.concepts.count)
        self.row_scale = self._start(vectors_by_key(corpus, vectors), fresh)

    def batch(self, step: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        config = self.config
        full = step % config.full_every == config.full_every - 1
        size, hard = self._difficulty(self.place(step))
        share = max(1, config.lists * size // config.candidates)
        lists = self.sampler.draw(rng, config.lists, size, hard, share=share)
        told = with_default_instruction(lists, rng, config.default_instruction)
        if self.place(step) < config.read_from:
            read = self.collator.queries(told)
        else:
            kept = [told[i] for i in rng.permutation(len(told))[: config.read]]
            if full:
                count = -(-len(kept) // 4)
                kept = [shortened(x, config.full_size, rng) for x in kept[:count]]
            read = self.collator.collate(kept, rng, reason=0.0, full_tokens=full)
        chosen = rng.permutation(len(self.pictures))[: config.descriptions]
        entries = [self.pictures[i] for i in chosen]
        texts = [self.texts[i] for i in rng.permutation(len(self.texts))[: config.texts]]
        pairs = self.collator.pairs(lists, [*entries, *texts])
        batches: dict[str, ListBatch | PairBatch] = {
            "describe": self.collator.describe(
                entries, [describe(e) for e in entries], full_tokens=full
            ),
            "lists": read,
            "pairs": pairs,
        }
        used = list(dict.fromkeys(p for batch in batches.values() for p in batch.pictures))
        mix = self.mixer.draw(used, config.blend, rng)
        row_of = {picture: number for number, picture in enumerate(used)}
        return {
            **batches,
            "shown": Shown(mix, Augmentation.draw(len(used), generator, config.clean)),
            "rows": {
                name: torch.tensor([row_of[p] for p in batch.pictures], dtype=torch.long)
                for name, batch in batches.items()
            },
            "named": self.concepts.goals(pairs.keys),
            "meant": self.concepts.goals(read.candidates.keys),
            "kind": "full_" if full else "",
        }

    def _difficulty(self, step: float) -> tuple[int, float]:
        """Candidates of a list, and how near negatives are, at a place in the schedule."""
        config = self.config
        hard = config.hard * min(1.0, step / (config.grow * config.steps))
        read = max(0, step - config.read_from) / max(1, config.steps - config.read_from)
        return config.sizes[min(int(read * len(config.sizes)), len(config.sizes) - 1)], hard

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        image = batch["shown"].paint(self.corpus.bank, self.side)
        rows = square_rows(self.model.visual, image, self.processor.image_processor)
        rows = rows * self.row_scale
        seen = {name: rows[numbers].flatten(0, 1) for name, numbers in batch["rows"].items()}
        described: ListBatch = batch["describe"]
        lists: ListBatch = batch["lists"]
        pairs: PairBatch = batch["pairs"]
        describe_loss = run_lists(self.model, described, seen["describe"]).token_loss()
        out = run_lists(self.model, lists, seen["lists"])
        pooled = pooled_tokens(self.model, pairs, seen["pairs"])
        content_loss, content_hits = pair_loss(pairs, self.model.icm.recall(pooled))
        anchors = self.model.anchors
        named_loss, named_hits = anchors.loss(pooled, batch["named"])
        meant_loss, meant_hits = anchors.loss(torch.cat(out.ends()), batch["meant"])
        loss = describe_loss + content_loss + named_loss + meant_loss
        kind = batch["kind"]
        metrics = {
            f"{kind}describe_loss": float(describe_loss.detach()),
            f"{kind}meant_accuracy": meant_hits,
            "named_accuracy": named_hits,
            "content_accuracy": content_hits,
            "samples": len(pairs.candidates.queries),
            "tokens": described.tokens + lists.tokens + len(rows) * self.patches,
        }
        if lists.answer_rows.numel():
            answer_loss, answer_hits = out.answer_loss()
            match_loss, match_hits = out.match_loss(self.processor.tokens.answer_start)
            pointer_loss, pointer_hits = out.pointer_loss()
            lookup_loss, lookup_hits = out.lookup_loss()
            loss = loss + out.token_loss() + answer_loss + match_loss + pointer_loss + lookup_loss
            metrics |= {
                f"{kind}answer_accuracy": answer_hits,
                f"{kind}match_accuracy": match_hits,
                f"{kind}pointer_accuracy": pointer_hits,
                f"{kind}lookup_accuracy": lookup_hits,
            }
        return loss, metrics

    def _start(self, known: dict[Key, np.ndarray], fresh: bool) -> float:
        """Starts the anchors, and a fresh model; returns what tower rows are scaled by.

        Args:
            known: first-stage vectors of what is seen of each entry.
        """
        model = self.model
        shown = sorted(p for text, p in known if text is None and p is not None)
        rows = clean_rows(model, self.processor, self.corpus.bank, shown)
        scale = self._start_model(known, shown, rows) if fresh else 1.0
        if fresh or model.icm.memory is None:
            goals = self.concepts.goals([(None, picture) for picture in shown])
            model.anchors.start(model.icm, rows * scale, goals)
        return scale

    def _start_model(self, known: dict[Key, np.ndarray], shown: list[int], rows: Tensor) -> float:
        """Makes a new model say what the first stage says; ``rows`` are those of ``shown``."""
        model = self.model
        goal = torch.from_numpy(np.stack([known[None, picture] for picture in shown]))
        to_vector = fit_rows(rows, goal.to(rows.device))
        texts = sorted(text for text, p in known if text is not None and p is None)
        ids = [self.collator.text_ids(text)[: self.config.max_text] for text in texts]
        goal = torch.from_numpy(np.stack([known[text, None] for text in texts])).to(rows.device)
        table = model.get_input_embeddings().weight
        tokens = fit_tokens(ids, goal, to_vector, len(table), steps=self.config.start_steps)
        used = sorted({token for text in ids for token in text})
        with torch.no_grad():
            table[used] = tokens[used] * model.config.get_text_config().initializer_range
        start_compressor(model.icm, to_vector)
        start_layers(model.language_model)
        return self.config.row_size / float(rows.pow(2).mean().sqrt())

    def validate(self) -> dict[str, float]:
        return self.validation.run(self.model, self.row_scale)

    @torch.no_grad()
    def save(self, out: Path) -> None:
        del self.model.anchors
        last = self.model.visual.merger.mlp[-1]
        for part in (last.weight, last.bias):
            part.mul_(self.row_scale)
        self.row_scale = 1.0
        self.model.save_pretrained(out)
        self.processor.save_pretrained(out)


def vectors_by_key(corpus: Corpus, vectors: dict[str, Vectors]) -> dict[Key, np.ndarray]:
    """First-stage vectors of all entries by what the model sees of them."""
    return {
        entry.key: vector
        for name, cell in corpus.cells.items()
        for entries, found in (
            (cell.queries, vectors[name].queries),
            (cell.pool, vectors[name].pool),
        )
        for entry, vector in zip(entries, found, strict=True)
    }


def described_pictures(corpus: Corpus) -> list[Entry]:
    """Every distinct picture of the pools that has a name, as an entry without text."""
    seen: dict[int, Entry] = {}
    for cell in corpus.cells.values():
        for entry in cell.pool:
            if entry.picture is not None and entry.meta.get("name"):
                seen.setdefault(entry.picture, Entry(None, entry.picture, entry.meta))
    return list(seen.values())
