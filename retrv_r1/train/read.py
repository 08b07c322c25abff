"""Stage ``read``: a backbone from scratch learns to read pictures and texts at full length.

It names pictures, and chooses from short lists. This is what official Qwen-VL checkpoints know
already; the paper's compressor is aligned to such a backbone (``align``). The tower is the first
stage's and stays as it is, so its rows are computed once. Compressor and token embeddings begin
with what the first stage knows (``initialize.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retrv_r1.model.modeling import PackedItems, RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.model.tokens import encode_template, encode_text
from retrv_r1.train.config import checked
from retrv_r1.train.copying import can_copy, initialize_copying
from retrv_r1.train.corpus import Corpus, Entry, Key
from retrv_r1.train.entry_vectors import Vectors
from retrv_r1.train.initialize import (
    fit_contents,
    fit_rows,
    fit_tokens,
    initialize_answer,
    initialize_compressor,
    initialize_layers,
    keep_agreement,
    nearest_rotation,
)
from retrv_r1.train.known_texts import KnownTexts
from retrv_r1.train.lists import ListCollator
from retrv_r1.train.losses import run_lists
from retrv_r1.train.naming import SCALE
from retrv_r1.train.reading import Reading
from retrv_r1.train.sampling import ListSampler, with_default_instruction
from retrv_r1.train.stage import Setup, Stage
from retrv_r1.train.tensors import to_device
from retrv_r1.train.tiny import RerankerShape, new_reranker
from retrv_r1.train.validation import ListValidation


@dataclass(frozen=True)
class ReadConfig:
    """Options of the stage.

    Args:
        descriptions: pictures named per step, from all of their rows and from their content tokens.
        lists: lists per step.
        texts: further texts per step, each read alone as a query.
        sizes: fewest and most candidates of a list.
        share: lists that have the same candidates.
        hard: final hardness of negatives, 0 to 1 (``sampling.py``), growing from 0.
        grow: share of training in which negatives grow harder.
        wordings: share of the queries by a name that are worded as people type.
        names: names per step that are negatives of all items.
        default_instruction: share of lists with the checkpoint's own, short instruction.
        views: views of a picture that are kept, all but the first augmented.
        max_text: tokens to which an item's text is cut.
        start_steps: steps in which token embeddings are fitted to the first stage's texts; content
            tokens are fitted to its vectors in half as many.
        steps: steps in all; the loop's ``steps`` by default.
    """

    descriptions: int = 48
    lists: int = 16
    texts: int = 96
    sizes: tuple[int, int] = (4, 8)
    share: int = 4
    hard: float = 0.9
    grow: float = 0.5
    wordings: float = 0.7
    names: int = 2048
    default_instruction: float = 0.6
    views: int = 2
    max_text: int = 12
    start_steps: int = 800
    steps: int = 1


class ReadStage(Stage):
    """Cross-entropy of names and answers, with the auxiliary losses of ``losses.py``."""

    Config = ReadConfig
    config: ReadConfig

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        config, named = self.config, setup.named
        fresh = "model" not in setup.config.init
        self.model, self.processor = self._fresh(setup) if fresh else setup.reranker()
        self.collator = ListCollator(self.processor, config.max_text)
        self.sampler = ListSampler(setup.train, setup.ranking(setup.train), named, config.wordings)
        self.named = named
        self.bank = setup.rows(self.model.visual, self.processor.image_processor, config.views)
        self.entries = setup.entries
        self.vectors = vectors_by_key(setup.train, setup.vectors(setup.train))
        to_vector = self._fit_rows()
        self.reading = Reading(to_vector)
        if fresh:
            self._initialize(setup, to_vector)
        self.validation = ListValidation(
            setup.val, setup.ranking(setup.val), self.collator, k=config.sizes[1], full_tokens=True
        )
        self.naming = self.add_auxiliary("naming", setup.naming(self.model.config.hidden_size))
        self.add_auxiliary("reading", self.reading)
        self.model.requires_grad_(True)
        self.model.freeze_towers()
        keep_agreement(self.model)

    def _fresh(self, setup: Setup) -> tuple[RetrvR1ForConditionalGeneration, RetrvR1Processor]:
        """A new model around the embed stage's tower."""
        shape = checked(RerankerShape, setup.config.model, f"{setup.config.source}: model")
        model, processor = new_reranker(shape, setup.result("embed"), setup.embedder)
        setup.machine.prepare(model)
        return model, processor

    def batch(self, step: int) -> dict[str, Any]:
        about, rng = self.draws(step)
        config = self.config
        size = int(about.integers(config.sizes[0], config.sizes[1] + 1))
        hard = config.hard * min(1.0, self.position(step) / (config.grow * config.steps))
        lists = self.sampler.draw(rng, config.lists, size, hard, share=config.share)
        lists = with_default_instruction(lists, rng, config.default_instruction)
        drawn = self.named.draw(rng, config.descriptions)
        entries = [Entry(None, picture, {}) for picture in drawn.pictures]
        names = [self.named.names[thing] for thing in drawn.things]
        described = self.collator.describe(entries, names, full_tokens=True)
        told = self.collator.describe(entries, names, full_tokens=False)
        read = self.collator.collate(lists, rng, reason=0.0, full_tokens=True)
        things = rng.integers(len(self.named.names), size=config.texts)
        texts = [Entry(self.named.any_text(int(thing), rng), None, {}) for thing in things]
        shown = [x.query for x in lists] + [c for x in lists for c in x.candidates]
        return {
            "describe": described,
            "tell": told,
            "lists": read,
            "texts": self.collator.queries(texts),
            "texts_known": self.entries.inputs(texts, None),
            "vectors": torch.from_numpy(np.stack([self._vector(entry) for entry in shown])),
            "things": torch.tensor(self.named.things(lists)),
            "others": torch.from_numpy(rng.integers(len(self.named.names), size=config.names)),
            "describe_views": self.bank.draw(described.pictures, rng),
            "lists_views": self.bank.draw(read.pictures, rng),
        }

    def _vector(self, entry: Entry) -> np.ndarray:
        """First-stage vector of an entry; zeros for a query in other words than the data's."""
        unknown = np.zeros(self.entries.model.config.embedding_dim, np.float32)
        return self.vectors.get(entry.key, unknown)

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        described, lists, texts = batch["describe"], batch["lists"], batch["texts"]
        rows = self.bank.rows_of(batch["describe_views"])
        name_loss = run_lists(self.model, described, rows).token_loss()
        told_loss = run_lists(self.model, batch["tell"], rows).token_loss()
        out = run_lists(self.model, lists, self.bank.rows_of(batch["lists_views"]))
        answer_loss, answer_hits = out.answer_loss()
        match_loss, match_hits = out.match_loss(self.processor.tokens.answer_start)
        pointer_loss, pointer_hits = out.pointer_loss()
        lookup_loss, lookup_hits = out.lookup_loss()
        # Names tell every row at which an item ends what it has read, not only that of the answer.
        ends = torch.cat(out.ends())
        end_loss, end_hits = self.naming.losses(
            nn.functional.normalize(ends, dim=-1), batch["things"], SCALE, batch["others"]
        )
        read_loss, likeness = self.reading.loss(ends, batch["vectors"])
        with torch.no_grad():
            known = self.entries.embed(batch["texts_known"])
        heard, _ = run_lists(self.model, texts, None).ends()
        text_loss, text_likeness = self.reading.loss(heard, known)
        loss = (
            name_loss
            + told_loss
            + out.token_loss()
            + answer_loss
            + match_loss
            + pointer_loss
            + lookup_loss
        )
        return loss + end_loss + _READING * (read_loss + text_loss), {
            "name_loss": name_loss.item(),
            "content_name_loss": told_loss.item(),
            "likeness": likeness,
            "text_likeness": text_likeness,
            "naming_accuracy": float(end_hits),
            "answer_accuracy": answer_hits,
            "match_accuracy": match_hits,
            "pointer_accuracy": pointer_hits,
            "lookup_accuracy": lookup_hits,
            "samples": len(lists.input_ids),
            "tokens": described.tokens + lists.tokens + texts.tokens,
        }

    def validate(self) -> dict[str, float]:
        return self.validation.run(self.model)

    def _fit_rows(self) -> Tensor:
        """The map from pictures' rows to their first-stage vectors."""
        rng = np.random.default_rng(self.seed)
        shown = sorted(p for text, p in self.vectors if text is None and p is not None)
        shown = sorted(rng.permutation(shown)[:_FITTED].tolist())
        rows = self.bank.clean(shown)
        goal = torch.from_numpy(np.stack([self.vectors[None, picture] for picture in shown]))
        return fit_rows(rows, goal.to(rows.device))

    def _initialize(self, setup: Setup, to_vector: Tensor) -> None:
        """Initializes compressor, token embeddings and layers from the first stage."""
        model = self.model
        texts = sorted(text for text, p in self.vectors if text is not None and p is None)
        texts = sorted({*texts, *setup.named.names})
        with torch.no_grad():
            vectors = setup.entries.embed_all([Entry(text, None, {}) for text in texts])
        known_texts = KnownTexts(self.processor.tokenizer, self.config.max_text)
        texts += [f" {text}" for text in texts]  # as they stand behind another word
        known_texts.learn(texts)
        vectors = vectors.to(to_vector.device).repeat(2, 1)
        ids = [known_texts.ids(text) for text in texts]
        table = model.get_input_embeddings().weight
        # Without a text tower the compressor reads them, beside the rows of pictures.
        space = to_vector if model.text_tower is None else nearest_rotation(to_vector)
        fitted = fit_tokens(ids, vectors, space, len(table), steps=self.config.start_steps)
        used = sorted({token for text in ids for token in text})
        with torch.no_grad():
            table[used] = fitted[used] * model.config.get_text_config().initializer_range
        initialize_compressor(model.icm, to_vector)
        fit_contents(model, self._contents(), to_vector, steps=self.config.start_steps // 2)
        initialize_layers(model.language_model)
        if can_copy(model):
            self._initialize_copying()
        else:
            notice = "a language model of this shape has to learn to copy: no head is set to do so"
            print(notice, file=sys.stderr, flush=True)
        if model.icm.agree is not None:
            tokens = self.processor.tokens
            initialize_answer(model, tokens.labels, (tokens.answer_start, tokens.inspect_start))

    def _initialize_copying(self) -> None:
        """Sets the heads that copy words of the query, and what content tokens show."""
        model, tokens, draw = self.model, self.processor.tokens, self._contents()
        with torch.no_grad():
            drawn = (items for items, _ in (draw() for _ in range(_SAMPLED)))
            contents = [model.icm.pooled(model.features(x), x.cu_seqlens) for x in drawn]
        before_query = encode_template(
            self.processor.tokenizer, model.config.prompts["before_query"]
        )
        colon = encode_text(self.processor.tokenizer, "ideal:")[-1]
        # The ideal begins as the query does, or is the name of its picture.
        follows = {colon: before_query[-1], tokens.think_start: tokens.vision_end}
        tags = tokens.think_start, tokens.inspect_start, tokens.answer_start
        sample = torch.cat(contents)
        initialize_copying(model, sample, tokens.labels, tokens.im_start, follows, tags)

    def _contents(self) -> Callable[[], tuple[PackedItems, Tensor]]:
        """Draws items of each kind, and texts as people type them, with first-stage vectors."""
        rng, device = np.random.default_rng([self.seed, 1]), self.model.device
        kinds = [
            [k for k in self.vectors if (k[0] is None, k[1] is None) == kind]
            for kind in ((True, False), (False, True), (False, False))
        ]
        kinds = [kind for kind in kinds if kind]

        def draw() -> tuple[PackedItems, Tensor]:
            drawn = (rng.integers(len(kind), size=_DRAWN).tolist() for kind in kinds)
            keys = [kind[n] for kind, numbers in zip(kinds, drawn, strict=True) for n in numbers]
            entries = [Entry(text, picture, {}) for text, picture in keys]
            known = np.stack([self.vectors[key] for key in keys])
            things = rng.integers(len(self.named.names), size=_DRAWN)
            typed = [Entry(self.named.any_text(int(thing), rng), None, {}) for thing in things]
            with torch.no_grad():
                heard = self.entries.embed(to_device(self.entries.inputs(typed, None), device))
            items = self.processor.pack([self.collator.encode(entry) for entry in entries + typed])
            shown = [entry.picture for entry in entries if entry.picture is not None]
            rows = self.bank.clean(shown).flatten(0, 1).to(device) if shown else None
            vectors = torch.cat([torch.from_numpy(known).to(device), heard])
            return replace(items.to(device), vision_rows=rows), vectors

        return draw


_READING = 4.0
"""Weight of the losses on first-stage vectors, which are below 1 from the start."""
_DRAWN = 96
"""Items of a kind in a step in which content tokens are fitted."""
_SAMPLED = 20
"""Draws of them that show in which directions content tokens vary."""
_FITTED = 20_000
"""Pictures from whose rows the map to the first stage's vectors is fitted."""


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
