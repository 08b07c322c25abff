"""Lists as model inputs: items packed once, prompts, and targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from retrv_r1.model.modeling import PackedItems
from retrv_r1.model.processing import EncodedItem, RetrvR1Processor
from retrv_r1.model.prompts import PromptBuilder, Rows, TableLayout
from retrv_r1.model.tokens import MAX_CANDIDATES, encode_text
from retrv_r1.train.chains import ChainPart, chain
from retrv_r1.train.corpus import Entry, Key, ListExample
from retrv_r1.train.pictures import merged_grid
from retrv_r1.types import ListReading


@dataclass(frozen=True)
class ListBatch:
    """Padded sequences over one row table.

    Attributes:
        items: the packed items, still without vision rows.
        pictures: bank rows of the pictures, in the order of their vision rows.
        input_ids, row_refs, labels: ``[b, l]``; position_ids ``[3, b, l]``.
        pair_candidate, pair_query: item numbers of the pairs.
        match_rows, match_cols: sequence and position of every candidate's last row, ``[c]``.
        match_fits: whether each of these candidates is the answer; match_labels: its label.
        rivals: which of all candidates are negatives of a list's query, ``[b, c]``.
        query_cols: position of the last row before the candidates, ``[b]``.
        answer_cols: position of the row that decides for a label, ``[b]``; none where lists have
            no candidates.
        end_keys: what the model has seen at the end of each query, then of each candidate.
    """

    items: PackedItems
    pictures: list[int]
    input_ids: Tensor
    row_refs: Tensor
    position_ids: Tensor
    labels: Tensor
    pair_candidate: Tensor
    pair_query: Tensor
    match_rows: Tensor
    match_cols: Tensor
    match_fits: Tensor
    match_labels: Tensor
    rivals: Tensor
    query_cols: Tensor
    answer_cols: Tensor
    end_keys: list[Key]

    @property
    def tokens(self) -> int:
        return self.input_ids.numel()


class ListCollator:
    """Turns list examples and descriptions into a :class:`ListBatch`.

    Args:
        max_text: tokens of an item's text that are read.
    """

    def __init__(self, processor: RetrvR1Processor, max_text: int = 24) -> None:
        self.processor, self.max_text = processor, max_text
        self.grid = merged_grid(processor.image_processor)
        self.builder = PromptBuilder(processor.tokenizer, processor.config.prompts)
        self.tokens = processor.tokens
        self._ids: dict[str, list[int]] = {}

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a text, remembered."""
        if text not in self._ids:
            self._ids[text] = encode_text(self.processor.tokenizer, text)
        return self._ids[text]

    def encode(self, entry: Entry) -> EncodedItem:
        """An entry as an encoded item without patches (the bank holds its picture)."""
        ids = tuple(self.text_ids(entry.text)[: self.max_text]) if entry.text else ()
        return EncodedItem(ids, rows=self.grid if entry.picture is not None else None)

    def collate(
        self,
        lists: Sequence[ListExample],
        rng: np.random.Generator,
        *,
        reason: float,
        reading: ListReading = "compressed",
        moved_labels: float = 0.2,
    ) -> ListBatch:
        """One sequence per list.

        Args:
            reason: share of lists with a chain of thought; the others answer at once.
            moved_labels: share of lists whose labels start anywhere, so that all are trained.
        """
        ordered, numbers = distinct(lists)
        encoded = [self.encode(entry) for entry in ordered]
        layout = TableLayout.of(encoded)
        pairs: list[tuple[int, int]] = []
        sequences, labels, matches, ends, answers = [], [], [], [], []
        for b, (example, (query, candidates)) in enumerate(zip(lists, numbers, strict=True)):
            first_pair = len(pairs)
            pairs += [(c, query) for c in candidates]
            offset = 0
            if rng.random() < moved_labels:
                offset = int(rng.integers(MAX_CANDIDATES - len(candidates) + 1))
            names = [self.tokens.labels[offset + k] for k in range(len(candidates))]
            rows = self.builder.listwise(
                layout,
                query,
                candidates,
                range(first_pair, first_pair + len(candidates)),
                instruction=example.instruction,
                labels=range(offset, offset + len(candidates)),
                full_tokens=reading == "full",
            )
            starts = label_positions(rows, names)
            lengths = [2] * len(candidates)
            if reading == "full":
                items = [layout.items[c] for c in candidates]
                lengths = [len(item) + 2 * bool(item.rows) for item in items]
            last = [start + length for start, length in zip(starts, lengths, strict=True)]
            matches += [(b, c, k == example.answer, names[k]) for k, c in enumerate(last)]
            ends.append(starts[0] - 1)
            targets = [-100] * len(rows)
            reasoned = rng.random() < reason
            if reasoned:
                self._think(rows, targets, chain(example, rng), names, layout, candidates)
            # A chain ends with the label that it decides for; the answer repeats it.
            answers.append(len(rows) - 3 if reasoned else len(rows))
            self._answer(rows, targets, names[example.answer], reasoned)
            sequences.append(rows)
            labels.append(targets)
        keys = [x.query.key for x in lists] + [c.key for x in lists for c in x.candidates]
        return self._pad(
            layout,
            ordered,
            sequences,
            labels,
            pairs=pairs,
            matches=matches,
            negatives=rivals(lists),
            query_ends=ends,
            answers=answers,
            end_keys=keys,
        )

    def queries(self, lists: Sequence[ListExample]) -> ListBatch:
        """The queries of lists, without their candidates."""
        ordered, numbers = distinct([replace(x, candidates=[]) for x in lists])
        layout = TableLayout.of([self.encode(entry) for entry in ordered])
        sequences = [
            self.builder.before_candidates(layout, query, example.instruction)
            for example, (query, _) in zip(lists, numbers, strict=True)
        ]
        labels = [[-100] * len(rows) for rows in sequences]
        ends, keys = [len(rows) - 1 for rows in sequences], [x.query.key for x in lists]
        return self._pad(layout, ordered, sequences, labels, query_ends=ends, end_keys=keys)

    def pairs(self, lists: Sequence[ListExample], more: Sequence[Entry] = ()) -> PairBatch:
        """The same lists for their content tokens alone, and ``more`` entries of no list."""
        ordered, numbers = distinct(lists, more)
        layout = TableLayout.of([self.encode(entry) for entry in ordered])
        shown = [(b, c) for b, (_, candidates) in enumerate(numbers) for c in candidates]
        owner, candidate = torch.tensor(shown).T
        return PairBatch(
            items=self.processor.pack(layout.items),
            pictures=pictures_of(ordered),
            keys=[entry.key for entry in ordered],
            query=torch.tensor([query for query, _ in numbers]),
            candidate=candidate,
            owner=owner,
            fits=torch.tensor([k == x.answer for x in lists for k in range(len(x.candidates))]),
            rivals=torch.tensor(rivals(lists)),
        )

    def _think(
        self,
        rows: Rows,
        targets: list[int],
        pieces: Sequence[ChainPart],
        names: Sequence[int],
        layout: TableLayout,
        candidates: Sequence[int],
    ) -> None:
        def write(ids: Sequence[int]) -> None:
            rows.add(ids)
            targets.extend(ids)

        write([self.tokens.think_start])
        for piece in pieces:
            if piece.kind == "text":
                write(self.text_ids(piece.text))
            elif piece.kind == "label":
                write([names[piece.candidate]])
            else:
                label = names[piece.candidate]
                write([self.tokens.inspect_start, label, self.tokens.inspect_end])
                self.builder.full_item(rows, layout, candidates[piece.candidate])
                targets.extend([-100] * (len(rows) - len(targets)))
        write([self.tokens.think_end])

    def _answer(self, rows: Rows, targets: list[int], label: int, reasoned: bool) -> None:
        ids = [self.tokens.answer_start, label, self.tokens.answer_end, self.tokens.end]
        rows.add(ids)
        # After reasoning the opening tag is the model's to write; in fast mode it is given.
        targets.extend([ids[0] if reasoned else -100, *ids[1:]])

    def describe(
        self, entries: Sequence[Entry], descriptions: Sequence[str], reading: ListReading
    ) -> ListBatch:
        """One sequence per entry: the item alone, then its description as the target."""
        encoded = [self.encode(entry) for entry in entries]
        layout = TableLayout.of(encoded)
        sequences, labels = [], []
        for item, description in enumerate(descriptions):
            rows = self.builder.description(layout, item, full_tokens=reading == "full")
            ids = [*self.text_ids(" " + description)[: self.max_text], self.tokens.end]
            labels.append([-100] * len(rows) + ids)
            sequences.append(rows.add(ids))
        return self._pad(layout, entries, sequences, labels)

    def _pad(
        self,
        layout: TableLayout,
        entries: Sequence[Entry],
        sequences: Sequence[Rows],
        labels: Sequence[Sequence[int]],
        *,
        pairs: Sequence[tuple[int, int]] = (),
        matches: Sequence[tuple[int, int, bool, int]] = (),
        negatives: Sequence[Sequence[bool]] = (),
        query_ends: Sequence[int] = (),
        answers: Sequence[int] = (),
        end_keys: Sequence[Key] = (),
    ) -> ListBatch:
        longest = max(len(rows) for rows in sequences)
        shape = (len(sequences), longest)
        ids = torch.full(shape, self.tokens.pad)
        refs, targets = torch.full(shape, -1), torch.full(shape, -100)
        positions = torch.zeros(3, *shape, dtype=torch.long)
        for b, (rows, target) in enumerate(zip(sequences, labels, strict=True)):
            assert len(rows) == len(target)
            length = len(rows)
            ids[b, :length], refs[b, :length], positions[:, b, :length] = rows.tensors()
            targets[b, :length] = torch.tensor(target)
        pair_tensor = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
        match = torch.tensor(matches, dtype=torch.long).reshape(-1, 4)
        return ListBatch(
            items=self.processor.pack(layout.items),
            pictures=pictures_of(entries),
            input_ids=ids,
            row_refs=refs,
            position_ids=positions,
            labels=targets,
            pair_candidate=pair_tensor[:, 0],
            pair_query=pair_tensor[:, 1],
            match_rows=match[:, 0],
            match_cols=match[:, 1],
            match_fits=match[:, 2].bool(),
            match_labels=match[:, 3],
            rivals=torch.tensor(negatives, dtype=torch.bool).reshape(len(query_ends), len(match)),
            query_cols=torch.tensor(query_ends, dtype=torch.long),
            answer_cols=torch.tensor(answers, dtype=torch.long),
            end_keys=list(end_keys),
        )


@dataclass(frozen=True)
class PairBatch:
    """Lists without prompts: the items whose content tokens are compared, and how.

    Attributes:
        items: the packed items, still without vision rows.
        pictures: bank rows of the pictures, in the order of their vision rows.
        keys: what is seen of each item.
        query, candidate: item numbers of every list's query ``[b]`` and of all candidates ``[c]``.
        owner, fits, rivals: of every candidate, as ``match_rows``, ``match_fits`` and ``rivals``.
    """

    items: PackedItems
    pictures: list[int]
    keys: list[Key]
    query: Tensor
    candidate: Tensor
    owner: Tensor
    fits: Tensor
    rivals: Tensor


def pictures_of(entries: Sequence[Entry]) -> list[int]:
    """Bank rows of the entries' pictures, in order."""
    return [entry.picture for entry in entries if entry.picture is not None]


def distinct(
    lists: Sequence[ListExample], more: Sequence[Entry] = ()
) -> tuple[list[Entry], list[tuple[int, list[int]]]]:
    """The entries of lists, each once, and every list's query and candidates as their numbers.

    ``more`` entries follow where they are not among them.
    """
    entries: dict[Key, int] = {}
    ordered: list[Entry] = []

    def number(entry: Entry) -> int:
        if entry.key not in entries:
            entries[entry.key] = len(ordered)
            ordered.append(entry)
        return entries[entry.key]

    numbers = [(number(x.query), [number(c) for c in x.candidates]) for x in lists]
    for entry in more:
        number(entry)
    return ordered, numbers


def rivals(lists: Sequence[ListExample]) -> list[list[bool]]:
    """Which of all lists' candidates, in order, are negatives of each list's query.

    The other candidates of its own list; of other lists those of the same cell that are not known
    to be relevant, nor the query itself.
    """
    shown = [(b, x.cell, c.key) for b, x in enumerate(lists) for c in x.candidates]
    out = []
    for b, example in enumerate(lists):
        answer = example.candidates[example.answer].key
        barred = example.relevant | {answer, example.query.key}
        out.append(
            [
                key != answer if owner == b else cell == example.cell and key not in barred
                for owner, cell, key in shown
            ]
        )
    return out


def label_positions(rows: Rows, names: Sequence[int]) -> list[int]:
    """Where the labels stand in a listwise prompt."""
    wanted = {name: k for k, name in enumerate(names)}
    found = {wanted[token]: col for col, token in enumerate(rows.ids) if token in wanted}
    return [found[k] for k in range(len(names))]
