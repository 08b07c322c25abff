"""Stage ``pretrain``: makes the tiny backbone, which no official checkpoint exists for.

Tower, compressor and language model learn together to name pictures and to pick from lists. All
lists train the content tokens, which costs little beside the tower; the language model reads some
of them, mostly compressed. The tower comes from the embed stage, content tokens and token
embeddings begin by saying what the first stage's vectors say (``start.py``). Official Qwen-VL
checkpoints skip this stage.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.train.chains import describe
from retrv_r1.train.corpus import Corpus, Entry, Key, used_pictures
from retrv_r1.train.features import clean_rows
from retrv_r1.train.lists import ListBatch, ListCollator, PairBatch, Reading
from retrv_r1.train.loop import Stage
from retrv_r1.train.losses import content_tokens, pair_loss, run_lists
from retrv_r1.train.pictures import augment, blend, side_of, to_patches
from retrv_r1.train.sampling import ListSampler, Vectors, shortened, with_default_instruction
from retrv_r1.train.start import (
    fit_rows,
    fit_tokens,
    start_compressor,
    start_layers,
    start_naming,
)
from retrv_r1.train.validation import ListValidation

_SAMPLE = 4000
"""Pictures that the start is fitted on."""


@dataclass(frozen=True)
class PretrainConfig:
    """Args:
    lists, size, share: lists a step, candidates of each, and how many have the same ones.
    hard: how near negatives are at the end (``sampling.py``), growing from 0 until ``grow``.
    read: lists that the language model reads; with ``read_sizes`` candidates, growing; at full
        tokens in one step of ``full_every``, a fourth as many of at most ``full_size``.
    descriptions: pictures described a step.
    blend: share of pictures blended with the same thing in another style, from step
        ``blend_from`` on: styles that no training picture has lie between those that they have.
    default_instruction: share of lists with the checkpoint's own, short instruction.
    start_steps: steps in which token embeddings are fitted to the first stage's texts.
    row_size: RMS that tower rows get. The embed stage leaves them at many times the size of what
        a layer adds, and no layer could change them.
    """

    lists: int = 64
    size: int = 16
    share: int = 8
    hard: float = 1.0
    grow: float = 0.5
    read: int = 16
    read_sizes: tuple[int, ...] = (4, 8, 16)
    full_size: int = 6
    full_every: int = 5
    descriptions: int = 24
    blend: float = 0.0
    blend_from: int = 0
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
        self.collator = ListCollator(processor, config.max_text)
        self.pictures = described_pictures(corpus)
        self.drawn: dict[str, list[int]] = defaultdict(list)
        for row in used_pictures(corpus):
            if (concept := corpus.bank.concepts[row]) is not None:
                self.drawn[concept].append(row)
        self.concepts = {name: number for number, name in enumerate(sorted(self.drawn))}
        # Part of the model while it trains, so that checkpoints hold it; dropped at the end.
        model.naming = nn.Linear(model.config.hidden_size, len(self.concepts))
        self.row_scale = self._start(vectors_by_key(corpus, vectors), fresh)

    def batch(self, step: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        config = self.config
        progress = min(1.0, step / (config.grow * config.steps))
        full = step % config.full_every == config.full_every - 1
        reading: Reading = "full" if full else "compressed"
        lists = self.sampler.draw(
            rng, config.lists, config.size, config.hard * progress, share=config.share
        )
        sizes = config.read_sizes
        size = sizes[min(int(progress * len(sizes)), len(sizes) - 1)]
        picked = rng.permutation(len(lists))[: config.read]
        if full:
            size, picked = min(size, config.full_size), picked[: -(-config.read // 4)]
        read = [shortened(lists[i], size, rng) for i in picked]
        read = with_default_instruction(read, rng, config.default_instruction)
        chosen = rng.integers(len(self.pictures), size=config.descriptions)
        entries = list({self.pictures[i].key: self.pictures[i] for i in chosen}.values())
        batches: dict[str, ListBatch | PairBatch] = {
            "describe": self.collator.describe(entries, [describe(e) for e in entries], reading),
            "lists": self.collator.collate(read, rng, reason=0.0, reading=reading),
            "pairs": self.collator.pairs(lists),
        }
        used = list(dict.fromkeys(p for batch in batches.values() for p in batch.pictures))
        share = config.blend if step >= config.blend_from else 0.0
        image = augment(self._blended(used, share, rng), self.side, generator)
        pixels, grid = to_patches(image, self.processor.image_processor, self.side)
        return {
            **batches,
            "used": used,
            "pixels": pixels,
            "grid": grid,
            "kind": "full_" if full else "",
        }

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        used = batch["used"]
        row_of = {picture: number for number, picture in enumerate(used)}
        rows = self.model.encode_pictures(batch["pixels"], batch["grid"])
        rows = rows.view(len(used), -1, rows.shape[-1]) * self.row_scale

        def vision(part: ListBatch | PairBatch) -> Tensor:
            return rows[[row_of[p] for p in part.pictures]].flatten(0, 1)

        described: ListBatch = batch["describe"]
        lists: ListBatch = batch["lists"]
        pairs: PairBatch = batch["pairs"]
        describe_loss = run_lists(self.model, described, vision(described)).token_loss()
        out = run_lists(self.model, lists, vision(lists))
        answer_loss, answer_hits = out.answer_loss()
        match_loss, match_hits = out.match_loss(self.processor.tokens.answer_start)
        pointer_loss, pointer_hits = out.pointer_loss()
        lookup_loss, lookup_hits = out.lookup_loss()
        content = content_tokens(self.model, pairs, vision(pairs))
        content_loss, content_hits = pair_loss(pairs, content)
        naming_loss, naming_hits = self._naming_loss(rows, used)
        loss = describe_loss + out.token_loss() + answer_loss + match_loss
        loss = loss + pointer_loss + lookup_loss + content_loss + naming_loss
        kind = batch["kind"]
        return loss, {
            f"{kind}describe_loss": float(describe_loss.detach()),
            f"{kind}answer_accuracy": answer_hits,
            f"{kind}match_accuracy": match_hits,
            f"{kind}pointer_accuracy": pointer_hits,
            f"{kind}lookup_accuracy": lookup_hits,
            "content_accuracy": content_hits,
            "naming_accuracy": naming_hits,
            "tokens": described.tokens + lists.tokens + len(batch["pixels"]),
        }

    def _blended(self, pictures: list[int], share: float, rng: np.random.Generator) -> Tensor:
        """Pictures, a share of them blended with another style's: ``[b, 4, s, s]``."""
        bank = self.corpus.bank
        rgba = bank.rgba(pictures)
        chosen = np.flatnonzero(rng.random(len(pictures)) < share)
        if not len(chosen):
            return rgba
        others = []
        for place in chosen:
            row = pictures[place]
            same = self.drawn.get(bank.concepts[row], [row])
            others.append(same[int(rng.integers(len(same)))])
        amount = torch.from_numpy(rng.uniform(0.15, 0.5, len(chosen)).astype(np.float32))
        rgba[chosen] = blend(rgba[chosen], bank.rgba(others), amount)
        return rgba

    def _start(self, known: dict[Key, np.ndarray], fresh: bool) -> float:
        """Gives a fresh model what the first stage knows; returns what tower rows are scaled by.

        Args:
            known: first-stage vectors of what is seen of each entry.
        """
        model = self.model
        shown = sorted(p for text, p in known if text is None and p is not None)
        shown = shown[:: max(1, len(shown) // _SAMPLE)]
        rows = clean_rows(model, self.processor, self.corpus.bank, shown)
        named = [(n, self._concept(p)) for n, p in enumerate(shown) if self._concept(p) >= 0]
        if named:
            numbers, concepts = torch.tensor(named).T
            start_naming(model.naming, pooled(rows[numbers]), concepts)
        if not fresh:
            return 1.0
        goal = torch.from_numpy(np.stack([known[None, picture] for picture in shown]))
        to_vector = fit_rows(rows, goal)
        texts = sorted(text for text, p in known if text is not None and p is None)
        ids = [self.collator.text_ids(text)[: self.config.max_text] for text in texts]
        goal = torch.from_numpy(np.stack([known[text, None] for text in texts]))
        table = model.get_input_embeddings().weight
        tokens = fit_tokens(ids, goal, to_vector, len(table), steps=self.config.start_steps)
        used = sorted({token for text in ids for token in text})
        with torch.no_grad():
            table[used] = tokens[used] * model.config.get_text_config().initializer_range
        start_compressor(model.icm, to_vector)
        start_layers(model.language_model)
        return self.config.row_size / float(rows.pow(2).mean().sqrt())

    def _concept(self, picture: int) -> int:
        """Number of the concept that a picture shows, -100 where the data does not say."""
        return self.concepts.get(self.corpus.bank.concepts[picture] or "", -100)

    def _naming_loss(self, rows: Tensor, pictures: list[int]) -> tuple[Tensor, float]:
        """Softmax over all concepts on a picture's mean row, as in the embed stage."""
        goal = torch.tensor([self._concept(picture) for picture in pictures])
        if not (goal >= 0).any():
            return rows.new_zeros(()), 0.0
        logits = self.model.naming(pooled(rows))
        loss = nn.functional.cross_entropy(logits, goal, label_smoothing=0.1)
        return loss, float((logits.argmax(1) == goal).float().mean())

    def validate(self) -> dict[str, float]:
        return self.validation.run(self.model, self.row_scale)

    @torch.no_grad()
    def save(self, out: Path) -> None:
        del self.model.naming
        last = self.model.visual.merger.mlp[-1]
        for part in (last.weight, last.bias):
            part.mul_(self.row_scale)
        self.row_scale = 1.0
        self.model.save_pretrained(out)
        self.processor.save_pretrained(out)


def pooled(rows: Tensor) -> Tensor:
    """A picture's mean row, normed: ``rows [n, r, d]`` → ``[n, d]``."""
    return nn.functional.rms_norm(rows.mean(1), rows.shape[-1:])


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
