"""First-stage vectors of training entries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from retrv_r1.files import replacing
from retrv_r1.model.embedder import RetrvEmbedder
from retrv_r1.train.augment import Augmentation, PicturePlan
from retrv_r1.train.corpus import Cell, Corpus, Entry
from retrv_r1.train.known_texts import KnownTexts
from retrv_r1.train.machine import ENCODED_AT_ONCE
from retrv_r1.train.pictures import side_of
from retrv_r1.train.tensors import digest_of, to_device
from retrv_r1.train.vision_rows import RowBank, picture_rows

_GROUPS = 4
"""Groups of texts by length in a batch."""


class EntryEmbedder:
    """Embeds entries in batches, with or without augmentation.

    Args:
        max_text: tokens to which a text is cut.
    Attributes:
        rows: rows of the pictures if the tower is at rest: augmented views are some of these.
    """

    rows: RowBank | None = None

    def __init__(
        self,
        model: RetrvEmbedder,
        tokenizer: PreTrainedTokenizerBase,
        processor: Qwen2VLImageProcessorPil,
        corpus: Corpus,
        max_text: int,
    ) -> None:
        self.model, self.tokenizer, self.processor = model, tokenizer, processor
        self.corpus, self.max_text = corpus, max_text
        self.side = side_of(processor)
        self._texts = KnownTexts(tokenizer, max_text)

    def inputs(self, entries: Sequence[Entry], generator: torch.Generator | None) -> dict[str, Any]:
        """Tensors of a batch of entries, augmented if a generator is given."""
        pictures = [i for i, e in enumerate(entries) if e.picture is not None]
        texts = [i for i, e in enumerate(entries) if e.text]
        out: dict[str, Any] = {"size": len(entries)}
        if pictures:
            shown = [p for e in entries if (p := e.picture) is not None]
            out["pictures"] = torch.tensor(pictures)
            if generator is not None and self.rows is not None:
                seed = int(torch.randint(2**31, (1,), generator=generator))
                out["views"] = self.rows.draw(shown, np.random.default_rng(seed))
            else:
                changes = Augmentation.draw(len(shown), generator) if generator else None
                out["plan"] = PicturePlan.of(shown, changes)
        if texts:
            # Texts of like length together: padding would cost several times the words.
            self._texts.learn(entries[i].text or "" for i in texts)
            ids = {i: torch.tensor(self._texts.ids(entries[i].text or "")) for i in texts}
            texts.sort(key=lambda i: len(ids[i]))
            groups = [
                texts[len(texts) * n // _GROUPS : len(texts) * (n + 1) // _GROUPS]
                for n in range(_GROUPS)
            ]
            out["texts"] = torch.tensor(texts)
            out["text_ids"] = {
                str(n): torch.nn.utils.rnn.pad_sequence([ids[i] for i in group], True, -1)
                for n, group in enumerate(groups)
                if group
            }
        return out

    def embed(self, inputs: dict[str, Any], side: int | None = None) -> Tensor:
        """Unit vectors ``[size, e]``; ``side`` is the pictures', the processor's by default."""
        return self.embed_parts([inputs], side)[0]

    def embed_parts(self, parts: Sequence[dict[str, Any]], side: int | None = None) -> list[Tensor]:
        """Unit vectors of several batches, whose pictures the tower sees as one."""
        shown = [part for part in parts if "pictures" in part]
        drawn: list[Tensor] = []
        if shown:
            vectors = self.model.project_pictures(self._mean_rows(shown, side or self.side))
            drawn = list(vectors.split([len(part["pictures"]) for part in shown]))
        written = self._texts_of([part["text_ids"] for part in parts if "texts" in part])
        out = []
        for part in parts:
            pictures = texts = None
            if "pictures" in part:
                pictures = (part["pictures"], drawn.pop(0))
            if "texts" in part:
                texts = (part["texts"], written.pop(0))
            out.append(self.model.fuse(part["size"], pictures, texts))
        return out

    def _texts_of(self, parts: Sequence[dict[str, Tensor]]) -> list[Tensor]:
        """Vectors of the texts of batches; the model reads each group of all of them at once."""
        vectors: list[list[Tensor]] = [[] for _ in parts]
        for group in sorted({name for part in parts for name in part}):
            owners = [n for n, part in enumerate(parts) if group in part]
            shown = [parts[n][group] for n in owners]
            width = max(ids.shape[1] for ids in shown)
            ids = torch.cat([pad(one, (0, width - one.shape[1]), value=-1) for one in shown])
            read = self.model.embed_texts(ids.clamp(min=0), (ids >= 0).long())
            for n, found in zip(owners, read.split(list(map(len, shown))), strict=True):
                vectors[n].append(found)
        return [torch.cat(found) for found in vectors]

    def _mean_rows(self, parts: Sequence[dict[str, Any]], side: int) -> Tensor:
        """Mean rows of the pictures of batches, ``[pictures, d]``."""
        if self.rows is not None and "views" in parts[0]:
            rows = [self.rows.rows_of(part["views"]) for part in parts]
            return torch.cat(
                [
                    x.unflatten(0, (len(part["pictures"]), -1)).mean(1)
                    for x, part in zip(rows, parts, strict=True)
                    if x is not None
                ]
            )
        images = torch.cat([part["plan"].render(self.corpus.bank, side) for part in parts])
        return picture_rows(self.model.visual, images, self.processor).mean(1)

    @torch.no_grad()
    def embed_all(self, entries: Sequence[Entry]) -> Tensor:
        """Unit vectors of many entries, without augmentation.

        Each distinct text and picture is embedded once.
        """
        batch = ENCODED_AT_ONCE[self.model.device.type]

        def part(keys: Sequence[Any], alone: Sequence[Entry]) -> tuple[Tensor, Tensor] | None:
            """Entries that have the part, and its vectors; ``alone`` has each part once."""
            if not alone:
                return None
            chunks = [alone[i : i + batch] for i in range(0, len(alone), batch)]
            inputs = (to_device(self.inputs(c, None), self.model.device) for c in chunks)
            vectors = torch.cat([self.embed(one) for one in inputs])
            number = {e.picture if e.text is None else e.text: n for n, e in enumerate(alone)}
            rows = [row for row, key in enumerate(keys) if key is not None]
            places = torch.tensor(rows, device=vectors.device)
            return places, vectors[[number[keys[row]] for row in rows]]

        pictures, texts = [e.picture for e in entries], [e.text or None for e in entries]
        return self.model.fuse(
            len(entries),
            part(pictures, [Entry(None, p, {}) for p in dict.fromkeys(pictures) if p is not None]),
            part(texts, [Entry(t, None, {}) for t in dict.fromkeys(texts) if t is not None]),
        )


@dataclass(frozen=True)
class Vectors:
    """First-stage unit vectors of a cell: ``queries [q, e]`` and ``pool [p, e]``."""

    queries: np.ndarray
    pool: np.ndarray

    def scores(self, row: int, numbers: np.ndarray | Sequence[int] | None = None) -> np.ndarray:
        """Similarities of a query and candidates of the pool, all by default."""
        pool = self.pool if numbers is None else self.pool[np.asarray(numbers)]
        return pool @ self.queries[row]


class Retrieved:
    """The same for given lists: what is not in a query's list has the score -inf.

    Args:
        cell: cell whose lists are given.
    """

    def __init__(self, cell: Cell) -> None:
        assert cell.retrieved is not None
        self.lists, self.size = cell.retrieved, len(cell.pool)

    def scores(self, row: int, numbers: np.ndarray | Sequence[int] | None = None) -> np.ndarray:
        """Ranks in a query's list, negative."""
        found = np.full(self.size, -np.inf, np.float32)
        found[self.lists[row]] = -np.arange(len(self.lists[row]), dtype=np.float32)
        return found if numbers is None else found[np.asarray(numbers)]


Ranking = Vectors | Retrieved
"""How close the candidates of a cell are to its queries."""


def embed_cells(embedder: EntryEmbedder, corpus: Corpus, cache: Path) -> dict[str, Vectors]:
    """First-stage vectors of every cell, kept in ``cache`` for the next stage."""
    cells = corpus.cells
    entries = [e for cell in cells.values() for e in (*cell.queries, *cell.pool)]
    sizes = [n for cell in cells.values() for n in (len(cell.queries), len(cell.pool))]
    shown = json.dumps([entry.key for entry in entries])
    path = cache / f"vectors-{digest_of(embedder.model, shown)}.npy"
    if not path.is_file():
        with replacing(path) as file:
            np.save(file, embedder.embed_all(entries).cpu().numpy())
    parts = iter(np.split(np.load(path), np.cumsum(sizes)[:-1]))
    return {name: Vectors(next(parts), next(parts)) for name in cells}
