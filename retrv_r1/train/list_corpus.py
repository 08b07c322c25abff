"""Training data from files of lists (``retrv-r1 data lists``): nothing else of a data set is read.

A corpus of lists has their queries and candidates alone, so a benchmark of millions of candidates
takes no more memory than its lists do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from retrv_r1.data import mbeir
from retrv_r1.data.list_items import ListItems
from retrv_r1.data.lists import CandidateList, read_lists
from retrv_r1.model.chains import Chain, content_words, parse, words
from retrv_r1.train.chains import describe
from retrv_r1.train.config import ConfigError
from retrv_r1.train.corpus import Cell, Corpus, Entry, read_metadata
from retrv_r1.train.named import NamedPictures
from retrv_r1.train.pictures import PictureBank


@dataclass(frozen=True)
class GivenLists:
    """The lists of files, by split and cell.

    Of equal lists the last one counts that has a chain, or else the last.

    Args:
        roots: folders of the data sets.
        files: files of lists.
        side: side in pixels of picture files.
    """

    roots: tuple[Path, ...]
    files: tuple[Path, ...]
    side: int

    @cached_property
    def lists(self) -> dict[tuple[str, str], list[CandidateList]]:
        """Distinct lists by (split, cell)."""
        found: dict[object, CandidateList] = {}
        for one in (one for path in self.files for one in read_lists(path)):
            known = found.get(one.key)
            if known is None or one.chain is not None or known.chain is None:
                found[one.key] = one
        grouped: dict[tuple[str, str], list[CandidateList]] = defaultdict(list)
        for one in found.values():
            grouped[one.split, one.cell].append(one)
        return dict(grouped)

    @cached_property
    def _items(self) -> ListItems:
        return ListItems(self.roots)

    @cached_property
    def bank(self) -> PictureBank:
        """The pictures that lists show: arrays of data sets that have them, files of others."""
        if all((root / "pictures.jsonl").is_file() for root in self.roots):
            return PictureBank.load(*self.roots)
        used: dict[Path, dict[str, None]] = {root: {} for root in self.roots}
        for (split, cell), lists in self.lists.items():
            root = self._items.cell(cell, split).root
            for one in lists:
                query, candidates = self._items.find(one)
                used[root].update(dict.fromkeys(c.image for c in candidates if c.image))
                if query.image:
                    used[root][query.image] = None
        return PictureBank.of_files({root: list(paths) for root, paths in used.items()}, self.side)

    def corpus(self, split: str) -> Corpus:
        """Queries and candidates of the lists of a split.

        Raises:
            ConfigError: there are none.
        """
        metadata = {root: read_metadata(root) for root in self.roots}
        corpus = Corpus.__new__(Corpus)
        corpus.bank, corpus.cells = self.bank, {}
        for (of, name), lists in sorted(self.lists.items()):
            if of == split:
                about = metadata[self._items.cell(name, of).root]
                corpus.cells[name] = self._cell(name, lists, about)
        if not corpus.cells:
            files = ", ".join(map(str, self.files))
            raise ConfigError(
                f"{files}: no lists of the split {split!r}; write some with `retrv-r1 data lists "
                f"--split {split}` and name their file under lists"
            )
        return corpus

    def _cell(self, name: str, lists: Sequence[CandidateList], about: dict[str, dict]) -> Cell:
        rows: dict[str, int] = {}
        pool: list[Entry] = []
        queries: list[Entry] = []
        positives: list[Sequence[str]] = []
        retrieved: list[np.ndarray] = []
        instructions: Sequence[str] = ()
        chains: dict[int, Chain] = {}
        for one in lists:
            query, candidates = self._items.find(one)
            for candidate in candidates:
                if candidate.did not in rows:
                    rows[candidate.did] = len(pool)
                    pool.append(self._entry(candidate, about.get(candidate.did, {})))
            numbers = [rows[did] for did in one.candidates]
            if one.chain is not None:
                chains[len(queries)] = _numbered(parse(one.chain), numbers)
            queries.append(self._entry(query, {}))
            positives.append(query.positives)
            retrieved.append(np.array(numbers))
            instructions = query.instructions or instructions
        known = [np.array([rows[did] for did in dids if did in rows], int) for dids in positives]
        return Cell(name, queries, pool, known, instructions or ("",), retrieved, chains)

    def _entry(self, one: mbeir.Query | mbeir.Candidate, about: dict) -> Entry:
        picture = self.bank.row_of[one.image] if one.image else None
        return Entry(one.text or None, picture, about)


def _numbered(chain: Chain, numbers: Sequence[int]) -> Chain:
    """A chain about places of a list as one about numbers of its pool."""
    near = tuple((numbers[k], name) for k, name in chain.near)
    return Chain(chain.ideal, near, tuple((numbers[k], said) for k, said in chain.seen))


def named_of_lists(corpus: Corpus) -> NamedPictures:
    """Pictures of a corpus of lists, by what names them.

    That is a candidate's name or text, or a query of words alone whose answer the picture is.

    Raises:
        ConfigError: nothing names a picture.
    """
    named: dict[int, str] = {}
    for cell in corpus.cells.values():
        assert cell.retrieved is not None
        for entry in cell.pool:
            if entry.picture is not None and (entry.text or entry.meta.get("name")):
                named.setdefault(entry.picture, describe(entry))
        for query, known, found in zip(cell.queries, cell.positives, cell.retrieved, strict=True):
            if query.picture is None and query.text:
                for answer in known[np.isin(known, found)].tolist():
                    if (picture := cell.pool[answer].picture) is not None:
                        named.setdefault(picture, content_words(query.text) or query.text)
    texts = {picture: text for picture, text in named.items() if words(text)}
    if not texts:
        raise ConfigError(
            "no list says what a picture shows: add lists of cells with texts, such as text → image"
        )
    pictures, names = list(texts), list(texts.values())
    things = [words(name) for name in names]
    glyphs = corpus.bank.is_glyph[pictures]
    return NamedPictures(pictures, things, names, [""] * len(names), glyphs, {}, {})
