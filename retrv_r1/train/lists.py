"""Batches of lists: items packed once, prompts over them, and targets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from retrv_r1.model.chains import Chain, content_words
from retrv_r1.model.modeling import PackedItems
from retrv_r1.model.processing import EncodedItem, RetrvR1Processor
from retrv_r1.model.prompts import Prompt, PromptBuilder, TableLayout
from retrv_r1.model.tokens import MAX_CANDIDATES
from retrv_r1.train.chains import chain_of
from retrv_r1.train.corpus import Entry, ListExample, distinct, pictures_of, rivals
from retrv_r1.train.known_texts import KnownTexts
from retrv_r1.train.pictures import merged_grid


@dataclass(frozen=True)
class Candidates:
    """Queries and candidates of ``b`` lists, with ``c`` candidates in all, list by list.

    Attributes:
        queries: item number of each list's query, ``[b]``.
        items: item number of each candidate, ``[c]``.
        owner: number of the list that a candidate stands in, ``[c]``.
        is_answer: whether a candidate is the answer of its list, ``[c]``.
        answered: numbers of the lists that have an answer, ``[a]``.
        rivals: whether a candidate is a negative of a list's query, ``[b, c]``.
    """

    queries: Tensor
    items: Tensor
    owner: Tensor
    is_answer: Tensor
    answered: Tensor
    rivals: Tensor

    @classmethod
    def of(
        cls, lists: Sequence[ListExample], numbers: Sequence[tuple[int, list[int]]]
    ) -> Candidates:
        """Builds the record of lists, whose item ``numbers`` are those of :func:`distinct`."""
        shown = [(b, k) for b, x in enumerate(lists) for k in range(len(x.candidates))]
        return cls(
            queries=_integers(query for query, _ in numbers),
            items=_integers(numbers[b][1][k] for b, k in shown),
            owner=_integers(b for b, _ in shown),
            is_answer=_integers(k == lists[b].answer for b, k in shown).bool(),
            answered=_integers(b for b, x in enumerate(lists) if x.answer is not None),
            rivals=torch.from_numpy(rivals(lists)),
        )


@dataclass(frozen=True)
class ListBatch:
    """Padded sequences over one row table, one for each list, description or ideal.

    Attributes:
        items: the packed items, still without vision rows.
        pictures: bank rows of the pictures, in the order of their vision rows.
        input_ids, row_refs, labels: ``[b, l]``; position_ids: ``[3, b, l]``.
        candidates: queries and candidates of the lists; empty without lists.
        candidate_ends: last row of each candidate, ``[c]``.
        candidate_labels: label token of each candidate, ``[c]``.
        query_ends: last row before the candidates, ``[b]``.
        answer_rows: row before the label that the model decides for, ``[b]``; empty if the lists
            have no candidates.
    """

    items: PackedItems
    pictures: list[int]
    input_ids: Tensor
    row_refs: Tensor
    position_ids: Tensor
    labels: Tensor
    candidates: Candidates
    candidate_ends: Tensor
    candidate_labels: Tensor
    query_ends: Tensor
    answer_rows: Tensor

    @property
    def tokens(self) -> int:
        """Number of tokens, padding included."""
        return self.input_ids.numel()


@dataclass
class _Sequence:
    """A prompt and what the model is to write after it."""

    prompt: Prompt
    written: list[range] = field(default_factory=list)  # rows of the tokens that are targets
    answer_row: int | None = None

    def write(self, ids: Sequence[int]) -> None:
        """Appends tokens that the model is to write."""
        self.written.append(range(len(self.prompt), len(self.prompt) + len(ids)))
        self.prompt.add(ids)


class ListCollator:
    """Turns list examples, descriptions and ideals into a :class:`ListBatch`.

    Args:
        max_text: number of tokens of an item's text that are read.
        inspections: whether chains keep their inspections.
    """

    def __init__(
        self, processor: RetrvR1Processor, max_text: int = 24, inspections: bool = True
    ) -> None:
        self.processor, self.max_text, self.inspections = processor, max_text, inspections
        self.grid = merged_grid(processor.image_processor)
        self.builder = PromptBuilder(processor.tokenizer, processor.config.prompts)
        self.tokens = processor.tokens
        self.texts = KnownTexts(processor.tokenizer)

    def encode(self, entry: Entry) -> EncodedItem:
        """An entry as an encoded item without patches (the bank holds its picture)."""
        ids = tuple(self.texts.ids(entry.text)[: self.max_text]) if entry.text else ()
        return EncodedItem(ids, rows=self.grid if entry.picture is not None else None)

    def collate(
        self,
        lists: Sequence[ListExample],
        rng: np.random.Generator,
        *,
        reason: float,
        full_tokens: bool = False,
        moved_labels: float = 0.2,
    ) -> ListBatch:
        """One sequence per list.

        Args:
            reason: share of lists with a chain of thought; the others answer at once.
            full_tokens: read candidates at full length instead of compressed.
            moved_labels: share of lists whose labels start anywhere, so that all are trained.
        """
        entries, numbers = distinct(lists)
        layout = TableLayout([self.encode(entry) for entry in entries])
        sequences, pairs = [], 0
        for example, (query, candidates) in zip(lists, numbers, strict=True):
            first_label = 0
            if rng.random() < moved_labels:
                first_label = int(rng.integers(MAX_CANDIDATES - len(candidates) + 1))
            prompt = self.builder.listwise(
                layout.items,
                query,
                candidates,
                instruction=example.instruction,
                first_pair=pairs,
                first_label=first_label,
                full_tokens=full_tokens,
            )
            pairs += len(candidates)
            thoughts = chain_of(example, rng) if rng.random() < reason else None
            if thoughts and not self.inspections:
                thoughts = replace(thoughts, seen=())
            sequences.append(self._answered(prompt, thoughts, example.answer, layout, candidates))
        return self._pad(layout, entries, sequences, Candidates.of(lists, numbers))

    def describe(
        self, entries: Sequence[Entry], descriptions: Sequence[str], *, full_tokens: bool
    ) -> ListBatch:
        """One sequence per entry: the item alone, then its description as the target."""
        layout = TableLayout([self.encode(entry) for entry in entries])
        sequences = []
        for item, description in enumerate(descriptions):
            one = _Sequence(self.builder.description(layout.items, item, full_tokens=full_tokens))
            ids = self.texts.ids(" " + description)[: self.max_text]
            one.write([*ids, self.tokens.end])
            sequences.append(one)
        return self._pad(layout, entries, sequences, Candidates.of([], []))

    def queries(self, entries: Sequence[Entry]) -> ListBatch:
        """One sequence per entry: what a prompt has before its candidates. Nothing is written."""
        layout = TableLayout([self.encode(entry) for entry in entries])
        sequences = [
            _Sequence(self.builder.before_candidates(layout.items, item, None))
            for item in range(len(entries))
        ]
        return self._pad(layout, entries, sequences, Candidates.of([], []))

    def can_repeat(self, query: str) -> bool:
        """Whether a text query has words for an ideal, and is read whole."""
        return bool(content_words(query)) and len(self.texts.ids(query)) <= self.max_text

    def ideals(self, queries: Sequence[str]) -> ListBatch:
        """One sequence per text query without a list: its chain's ideal as the target."""
        layout = TableLayout([self.encode(Entry(query, None, {})) for query in queries])
        sequences = []
        for item, query in enumerate(queries):
            one = _Sequence(self.builder.listwise(layout.items, item, []))
            one.write([self.tokens.think_start])
            for part in Chain(content_words(query)).parts():
                one.write(self.texts.ids(part.text))
            sequences.append(one)
        entries = [Entry(query, None, {}) for query in queries]
        return self._pad(layout, entries, sequences, Candidates.of([], []))

    def _answered(
        self,
        prompt: Prompt,
        thoughts: Chain | None,
        answer: int | None,
        layout: TableLayout,
        candidates: Sequence[int],
    ) -> _Sequence:
        """A listwise prompt, its chain of thought if there is one, and its answer."""
        tokens, one = self.tokens, _Sequence(prompt)
        labels = [prompt.ids[rows.start] for rows in prompt.candidates]
        if thoughts:
            one.write([tokens.think_start])
            for part in thoughts.parts():
                if part.kind == "text":
                    one.write(self.texts.ids(part.text))
                    continue
                label = labels[part.candidate]
                if part.kind == "label":
                    one.write([label])
                    continue
                one.write([tokens.inspect_start, label, tokens.inspect_end])
                self.builder.full_item(prompt, layout.items, candidates[part.candidate])
            one.write([tokens.think_end, tokens.answer_start])
        else:  # in fast mode the opening tag is part of the prompt
            prompt.add([tokens.answer_start])
        one.answer_row = len(prompt) - 1
        if answer is None:  # an engine reads the probability and writes a candidate's label
            assert tokens.none is not None
            one.write([tokens.none])
        else:
            one.write([labels[answer], tokens.answer_end, tokens.end])
        return one

    def _pad(
        self,
        layout: TableLayout,
        entries: Sequence[Entry],
        sequences: Sequence[_Sequence],
        candidates: Candidates,
    ) -> ListBatch:
        prompts = [one.prompt for one in sequences]
        shape = (len(prompts), max(map(len, prompts)))
        ids = torch.full(shape, self.tokens.pad)
        refs, targets = torch.full(shape, -1), torch.full(shape, -100)
        positions = torch.zeros(3, *shape, dtype=torch.long)
        for b, one in enumerate(sequences):
            prompt, length = one.prompt, len(one.prompt)
            ids[b, :length] = torch.tensor(prompt.ids)
            refs[b, :length] = torch.tensor(prompt.refs(layout))
            positions[:, b, :length] = prompt.positions()
            for rows in one.written:
                span = slice(rows.start, rows.stop)
                targets[b, span] = ids[b, span]
        shown = [(prompt, rows) for prompt in prompts for rows in prompt.candidates]
        return ListBatch(
            items=self.processor.pack(layout.items),
            pictures=pictures_of(entries),
            input_ids=ids,
            row_refs=refs,
            position_ids=positions,
            labels=targets,
            candidates=candidates,
            candidate_ends=_integers(rows.stop - 1 for _, rows in shown),
            candidate_labels=_integers(prompt.ids[rows.start] for prompt, rows in shown),
            query_ends=_integers(p.query_end for p in prompts if p.query_end is not None),
            answer_rows=_integers(s.answer_row for s in sequences if s.answer_row is not None),
        )


def _integers(values: Iterable[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.long)
