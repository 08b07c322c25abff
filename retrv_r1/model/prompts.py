"""Prompts: their rows, and the position of each row.

    [system + instruction][query in full, its t_con][label, t_con, t_rel] … [task]

The query comes first, so that requests with the same query share the longest prefix. It ends with
its own content token, which is in the same space as those of the candidates.
Positions depend on the prefix only: compressed tokens have ordinary text positions, the rows of a
picture have those of Qwen-VL's M-RoPE grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from retrv_engine import FeatureRows, Piece
from retrv_engine.request import advance_of, positions_of
from retrv_r1.model.processing import EncodedItem
from retrv_r1.model.tokens import TokenIds, encode_template, encode_text

SlotKind = Literal["picture", "content", "relation"]
"""Rows of an item's picture, its content token, or the relation token of a pair."""


class Slot(NamedTuple):
    """Consecutive rows of a prompt that are not embeddings of its tokens.

    Attributes:
        kind: kind of the rows.
        number: number of the item, or of the pair.
        start: first row in the prompt.
        length: number of rows.
        width: width of a picture's grid; 0 for text positions.
    """

    kind: SlotKind
    number: int
    start: int
    length: int = 1
    width: int = 0


@dataclass
class Prompt:
    """The rows of a sequence, in order.

    Attributes:
        ids: token id of each row; those of slots are placeholders.
        slots: slots in order.
        query_end: last row before the list of candidates; None without a list.
        candidates: rows of each candidate; in a list the first of them is its label.
    """

    ids: list[int] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    query_end: int | None = None
    candidates: list[range] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, ids: Sequence[int]) -> Prompt:
        """Appends tokens."""
        self.ids.extend(ids)
        return self

    def add_slot(
        self, kind: SlotKind, number: int, token: int, grid: tuple[int, int] = (1, 0)
    ) -> Prompt:
        """Appends a slot of one row or, for a picture, of a ``grid`` (h, w).

        Args:
            token: id of its placeholder.
        """
        height, width = grid
        slot = Slot(kind, number, len(self), height * max(1, width), width)
        self.slots.append(slot)
        return self.add([token] * slot.length)

    def pieces(self, rows_of: Callable[[Slot], FeatureRows]) -> list[Piece]:
        """The prompt as engines take it; ``rows_of`` gives the rows of a slot."""
        pieces: list[Piece] = []
        row = 0
        for slot in self.slots:
            pieces += [*self.ids[row : slot.start], rows_of(slot)]
            row = slot.start + slot.length
        return pieces + self.ids[row:]

    def refs(self, layout: TableLayout) -> list[int]:
        """Row of the model's table at each row of the prompt; -1 for the token's embedding."""
        refs = [-1] * len(self)
        for slot in self.slots:
            first = layout.row_of(slot)
            refs[slot.start : slot.start + slot.length] = range(first, first + slot.length)
        return refs

    def positions(self) -> Tensor:
        """M-RoPE positions ``[3, l]``."""
        parts, row, position = [], 0, 0
        pictures = [slot for slot in self.slots if slot.width]
        for slot in [*pictures, Slot("picture", -1, start=len(self), length=0)]:
            for length, width in ((slot.start - row, 0), (slot.length, slot.width)):
                parts.append(positions_of(position, length, width))
                position += advance_of(length, width)
            row = slot.start + slot.length
        return torch.cat(parts, 1)


class TableLayout:
    """Numbers of the rows in the model's ``row_table``.

    The feature rows of all items come first, then content tokens, then relation tokens.

    Attributes:
        items: items, in packing order.
        first_row: first feature row of each item.
        rows: number of feature rows.
    """

    def __init__(self, items: Sequence[EncodedItem]) -> None:
        self.items = items
        *self.first_row, self.rows = accumulate(map(len, items), initial=0)

    def row_of(self, slot: Slot) -> int:
        """First of the table's rows for a slot."""
        if slot.kind == "picture":
            return self.first_row[slot.number]
        return self.rows + slot.number + (len(self.items) if slot.kind == "relation" else 0)


class PromptBuilder:
    """Builds the prompts of one checkpoint from its stored templates.

    ``items`` are a request's encoded items, ``query`` and ``candidates`` numbers of them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompts: dict[str, str]) -> None:
        self.tokenizer = tokenizer
        self.tokens = TokenIds.of(tokenizer)
        self.default_instruction = prompts["instruction"]
        self._parts = {k: encode_template(tokenizer, v) for k, v in prompts.items()}
        yes, no = (encode_text(tokenizer, prompts[word])[0] for word in ("yes", "no"))
        if yes == no:
            raise ValueError(
                f"the prompts' yes and no ({prompts['yes']!r}, {prompts['no']!r}) begin with the "
                "same token; choose words that differ in their first"
            )
        self.verdicts = (yes, no)
        if not {self.tokens.content, self.tokens.relation} & set(self._parts["candidate"]):
            raise ValueError(
                "the prompts' candidate shows none of its rows: write <|content|>, <|relation|> "
                "or both"
            )

    def full_item(self, prompt: Prompt, items: Sequence[EncodedItem], number: int) -> Prompt:
        """Appends an item at full length: its picture's rows between two tags, then its text."""
        item = items[number]
        if item.rows:
            prompt.add([self.tokens.vision_start])
            prompt.add_slot("picture", number, self.tokens.image_pad, item.rows)
            prompt.add([self.tokens.vision_end])
        return prompt.add(item.text_ids)

    def before_candidates(
        self, items: Sequence[EncodedItem], query: int, instruction: str | None = None
    ) -> Prompt:
        """System, instruction and query: the prefix that all lists of a query share."""
        prompt = self._query(items, query, instruction)
        prompt.add_slot("content", query, self.tokens.content)
        prompt.add(self._parts["before_candidates"])
        prompt.query_end = len(prompt) - 1
        return prompt

    def _query(self, items: Sequence[EncodedItem], query: int, instruction: str | None) -> Prompt:
        """System, instruction and query in full."""
        prompt = Prompt().add(self._parts["before_instruction"])
        prompt.add(encode_text(self.tokenizer, instruction or self.default_instruction))
        return self.full_item(prompt.add(self._parts["before_query"]), items, query)

    def pointwise(
        self,
        items: Sequence[EncodedItem],
        query: int,
        candidate: int,
        *,
        instruction: str | None = None,
    ) -> Prompt:
        """The prompt that asks whether one candidate, at full length, matches the query."""
        prompt = self._query(items, query, instruction).add(self._parts["before_candidate"])
        start = len(prompt)
        self.full_item(prompt, items, candidate)
        prompt.candidates.append(range(start, len(prompt)))
        return prompt.add(self._parts["after_candidate"])

    def description(self, items: Sequence[EncodedItem], item: int, *, full_tokens: bool) -> Prompt:
        """The prompt that asks what an item shows, given all its rows or its content token."""
        prompt = Prompt().add(self._parts["before_item"])
        if full_tokens:
            self.full_item(prompt, items, item)
        else:
            prompt.add_slot("content", item, self.tokens.content)
        return prompt.add(self._parts["after_item"])

    def listwise(
        self,
        items: Sequence[EncodedItem],
        query: int,
        candidates: Sequence[int],
        *,
        instruction: str | None = None,
        first_pair: int = 0,
        first_label: int = 0,
        full_tokens: bool = False,
    ) -> Prompt:
        """The listwise prompt.

        Args:
            instruction: wording of the task; the checkpoint's own when None.
            first_pair: number of the first candidate's pair; the others follow it.
            first_label: number of the first candidate's label, from 0; the others follow it.
            full_tokens: read every candidate at full length (the "without ICM" baseline).
        """
        tokens, prompt = self.tokens, self.before_candidates(items, query, instruction)
        labels = tokens.labels[first_label : first_label + len(candidates)]
        for pair, (label, item) in enumerate(zip(labels, candidates, strict=True), first_pair):
            start = len(prompt)
            prompt.add([label])
            if full_tokens:
                self.full_item(prompt, items, item)
            else:
                for token in self._parts["candidate"]:
                    if token == tokens.content:
                        prompt.add_slot("content", item, token)
                    elif token == tokens.relation:
                        prompt.add_slot("relation", pair, token)
                    else:
                        prompt.add([token])
            prompt.candidates.append(range(start, len(prompt)))
        return prompt.add(self._parts["after_candidates"])
