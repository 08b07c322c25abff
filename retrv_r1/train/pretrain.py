"""Stage ``pretrain``: trains the tiny backbone, for which there is no official checkpoint.

Tower, compressor and language model learn together which concepts pictures and texts show
(``anchors.py``), and to choose from lists. All lists train the content tokens, which costs little
beside the tower. The language model first reads their queries alone; once content tokens are
informative it reads some of the lists, mostly compressed. The tower comes from the embed stage;
compressor and token embeddings are initialized from its vectors (``initialize.py``). Official
Qwen-VL checkpoints skip this stage.
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
from retrv_r1.train.augment import Augmentation, PicturePlan, StyleMixer
from retrv_r1.train.chains import describe
from retrv_r1.train.config import ConfigError, checked
from retrv_r1.train.corpus import Corpus, Entry, Key, described_pictures, used_pictures
from retrv_r1.train.entry_vectors import Vectors
from retrv_r1.train.initialize import fit_rows, fit_tokens, initialize_compressor, initialize_layers
from retrv_r1.train.lists import ListBatch, ListCollator, PairBatch
from retrv_r1.train.losses import pair_loss, pooled_tokens, run_lists
from retrv_r1.train.pictures import side_of
from retrv_r1.train.sampling import ListSampler, shortened, with_default_instruction
from retrv_r1.train.stage import Setup, Stage
from retrv_r1.train.tiny import RerankerShape, new_reranker
from retrv_r1.train.validation import ListValidation
from retrv_r1.train.vision_rows import clean_rows, picture_rows


@dataclass(frozen=True)
class PretrainConfig:
    """Options of the stage.

    Args:
        lists: lists per step.
        candidates: approximate number of distinct candidates per step; lists share them.
        sizes: candidates of a list: the first of these until step ``read_from``, then one after
            the other in equal parts of training.
        hard: final hardness of negatives, 0 to 1 (``sampling.py``), growing from 0.
        grow: share of training in which negatives grow harder.
        read: lists per step that the language model reads.
        read_from: step from which it reads lists; before, it reads the queries of all lists.
        full_size: most candidates of a list at full length, a fourth as many lists as ``read``.
        full_every: period in steps of the lists at full length.
        descriptions: pictures described per step.
        texts: further texts per step, for their content tokens alone.
        blend: share of pictures blended with the same thing in another style.
        clean: share of pictures that are not augmented.
        default_instruction: share of lists with the checkpoint's own, short instruction.
        max_text: tokens to which an item's text is cut.
        start_steps: steps in which token embeddings are fitted to the first stage's texts.
        row_size: RMS that tower rows are scaled to. The embed stage leaves them many times larger
            than what a layer adds, so that no layer could change them.
        steps: steps in all; the loop's ``steps`` by default.
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
    """Losses on descriptions, content tokens, concepts and lists, all weighted alike."""

    Config = PretrainConfig
    config: PretrainConfig

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.corpus = corpus = setup.train
        self.concepts = Concepts(corpus)
        fresh = "model" not in setup.config.init
        self.model, self.processor = self._fresh(setup) if fresh else setup.reranker()
        model, processor, images = self.model, self.processor, self.processor.image_processor
        self.side = side_of(images)
        self.patches = (self.side // images.patch_size) ** 2
        self.collator = ListCollator(processor, self.config.max_text)
        self.pictures = described_pictures(corpus)
        if not self.pictures:
            raise ConfigError(
                f"{setup.config.data}: no candidate picture has a name in metadata.jsonl, by which "
                "it could be described; add names"
            )
        vectors = setup.vectors(corpus, processor)
        self.sampler = ListSampler(corpus, vectors)
        known = setup.vectors(setup.val, processor)
        self.validation = ListValidation(setup.val, known, self.collator)
        self.mixer = StyleMixer(corpus.bank, used_pictures(corpus))
        names = sorted(text for text, picture in self.concepts.of if text and picture is None)
        self.texts = [Entry(text, None, {}) for text in names]
        self.anchors = self.add_auxiliary("anchors", Anchors.of(model, self.concepts.count))
        self.row_scale = self._initialize(vectors_by_key(corpus, vectors), fresh)

    def _fresh(self, setup: Setup) -> tuple[RetrvR1ForConditionalGeneration, RetrvR1Processor]:
        """A new model around the embed stage's tower."""
        shape = checked(RerankerShape, setup.config.model, f"{setup.config.source}: model")
        path, count = setup.result("embed"), self.concepts.count
        model, processor = new_reranker(shape, path, setup.embedder, count)
        setup.machine.prepare(model)
        return model, processor

    def batch(self, step: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        config = self.config
        full = step % config.full_every == config.full_every - 1
        size, hard = self._difficulty(self.position(step))
        share = max(1, config.lists * size // config.candidates)
        lists = self.sampler.draw(rng, config.lists, size, hard, share=share)
        told = with_default_instruction(lists, rng, config.default_instruction)
        if self.position(step) < config.read_from:
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
            "plan": PicturePlan(mix, Augmentation.draw(len(used), generator, config.clean)),
            "rows": {
                name: torch.tensor([row_of[p] for p in batch.pictures], dtype=torch.long)
                for name, batch in batches.items()
            },
            "named": self.concepts.goals(pairs.keys),
            "meant": self.concepts.goals(read.candidates.keys),
            "kind": "full_" if full else "",
        }

    def _difficulty(self, step: float) -> tuple[int, float]:
        """Size of lists and hardness of negatives at a position in the schedule."""
        config = self.config
        hard = config.hard * min(1.0, step / (config.grow * config.steps))
        read = max(0, step - config.read_from) / max(1, config.steps - config.read_from)
        return config.sizes[min(int(read * len(config.sizes)), len(config.sizes) - 1)], hard

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        image = batch["plan"].render(self.corpus.bank, self.side)
        rows = picture_rows(self.model.visual, image, self.processor.image_processor)
        rows = rows * self.row_scale
        seen = {name: rows[numbers].flatten(0, 1) for name, numbers in batch["rows"].items()}
        described: ListBatch = batch["describe"]
        lists: ListBatch = batch["lists"]
        pairs: PairBatch = batch["pairs"]
        describe_loss = run_lists(self.model, described, seen["describe"]).token_loss()
        out = run_lists(self.model, lists, seen["lists"])
        pooled = pooled_tokens(self.model, pairs, seen["pairs"])
        content_loss, content_hits = pair_loss(pairs, self.model.icm.recall(pooled))
        named_loss, named_hits = self.anchors.loss(pooled, batch["named"])
        meant_loss, meant_hits = self.anchors.loss(torch.cat(out.ends()), batch["meant"])
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

    def _initialize(self, known: dict[Key, np.ndarray], fresh: bool) -> float:
        """Initializes the anchors, and a fresh model; returns the scale of tower rows.

        Args:
            known: first-stage vectors by what the model sees of an entry.
        """
        model = self.model
        shown = sorted(p for text, p in known if text is None and p is not None)
        rows = clean_rows(model, self.processor, self.corpus.bank, shown)
        scale = self._initialize_model(known, shown, rows) if fresh else 1.0
        if fresh or model.icm.memory is None:
            goals = self.concepts.goals([(None, picture) for picture in shown])
            self.anchors.initialize(model.icm, rows * scale, goals)
        return scale

    def _initialize_model(
        self, known: dict[Key, np.ndarray], shown: list[int], rows: Tensor
    ) -> float:
        """Initializes a model from first-stage vectors; ``rows`` are the tower's of ``shown``."""
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
        initialize_compressor(model.icm, to_vector)
        initialize_layers(model.language_model)
        return self.config.row_size / float(rows.pow(2).mean().sqrt())

    def validate(self) -> dict[str, float]:
        return self.validation.run(self.model, self.row_scale)

    @torch.no_grad()
    def save(self, out: Path) -> None:
        last = self.model.visual.merger.mlp[-1]
        for part in (last.weight, last.bias):
            part.mul_(self.row_scale)
        self.row_scale = 1.0
        super().save(out)


def vectors_by_key(corpus: Corpus, vectors: dict[str, Vectors]) -> dict[Key, np.ndarray]:
    """First-stage vectors by what the model sees of an entry."""
    return {
        entry.key: vector
        for name, cell in corpus.cells.items()
        for entries, found in (
            (cell.queries, vectors[name].queries),
            (cell.pool, vectors[name].pool),
        )
        for entry, vector in zip(entries, found, strict=True)
    }
