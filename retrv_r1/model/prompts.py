"""The prompt: which row stands where, at which position.

    [system + instruction][query in full, its t_con][label, t_con, t_rel] … [task]

The query comes first, so that everything which shares a query shares the longest prefix. It ends
with its own content token, in whose space the candidates' content tokens lie.
Positions depend on the prefix alone: compressed tokens take ordinary text positions, the rows of
a picture in full take Qwen-VL's M-RoPE grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from retrv_engine import FeatureRows, Piece
from retrv_r1.model.processing import EncodedItem
from retrv_r1.model.tokens import TokenIds, encode_template, encode_text


@dataclass
class Rows:
    """A piece of a sequence while it is put together.

    Attributes:
        ids: token id at each position.
        refs: row of the model's table that stands there, -1 for the token's own embedding.
        positions: (t, h, w) position of each row.
        next_position: position of the row that would follow.
        grids: (h, w) of the pictures, by the row where each begins.
    """

    ids: list[int] = field(default_factory=list)
    refs: list[int] = field(default_factory=list)
    positions: list[tuple[int, int, int]] = field(default_factory=list)
    next_position: int = 0
    grids: dict[int, tuple[int, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, ids: Sequence[int], refs: Sequence[int] | None = None) -> Rows:
        """Appends rows at text positions."""
        start = self.next_position
        self.ids.extend(ids)
        self.refs.extend(refs if refs is not None else [-1] * len(ids))
        self.positions.extend((p, p, p) for p in range(start, start + len(ids)))
        self.next_position = start + len(ids)
        return self

    def add_grid(self, token: int, first_ref: int, grid: tuple[int, int]) -> Rows:
        """Appends a picture's rows, ``h·w`` of them, at M-RoPE grid positions."""
        start, (height, width) = self.next_position, grid
        self.grids[len(self.ids)] = grid
        self.ids.extend([token] * (height * width))
        self.refs.extend(range(first_ref, first_ref + height * width))
        self.positions.extend(
            (start, start + y, start + x) for y in range(height) for x in range(width)
        )
        self.next_position = start + max(height, width)
        return self

    def pieces(self, place: Callable[[int], tuple[Tensor, int, int]]) -> list[Piece]:
        """The rows as engines take them.

        Args:
            place: table, row and key (as of ``FeatureRows``) of what a reference names.
        """
        pieces: list[Piece] = []
        row = 0
        while row < len(self.ids):
            if self.refs[row] < 0:
                pieces.append(self.ids[row])
                row += 1
                continue
            height, width = self.grids.get(row, (1, 0))
            table, first, key = place(self.refs[row])
            length = height * max(1, width)
            pieces.append(FeatureRows(table, first, length, key, width))
            row += length
        return pieces

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """``ids [l]``, ``refs [l]``, ``positions [3, l]``."""
        return (
            torch.tensor(self.ids, dtype=torch.long),
            torch.tensor(self.refs, dtype=torch.long),
            torch.tensor(self.positions, dtype=torch.long).reshape(-1, 3).T,
        )


@dataclass(frozen=True)
class TableLayout:
    """Where the rows of a request stand in the model's row table.

    Attributes:
        items: the encoded items of the table, in packing order.
        first_row: first feature row of each item.
        rows: feature rows of all items together; content tokens follow, then relation tokens.
    """

    items: Sequence[EncodedItem]
    first_row: Sequence[int]
    rows: int

    @classmethod
    def of(cls, items: Sequence[EncodedItem]) -> TableLayout:
        first, total = [], 0
        for item in items:
            first.append(total)
            total += len(item)
        return cls(items, first, total)

    def content(self, item: int) -> int:
        """Row of an item's content token."""
        return self.rows + item

    def relation(self, pair: int) -> int:
        """Row of a pair's relation token."""
        return self.rows + len(self.items) + pair


class PromptBuilder:
    """Builds the prompts of one checkpoint from its stored templates."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompts: dict[str, str]) -> None:
        self.tokenizer = tokenizer
        self.tokens = TokenIds.of(tokenizer)
        self.default_instruction = prompts["instruction"]
        self._parts = {k: encode_template(tokenizer, v) for k, v in prompts.items()}
        yes, no = (encode_text(tokenizer, prompts[word])[0] for word in ("yes", "no"))
        if yes == no:
            raise ValueError("the prompts' yes and no begin with the same token")
        self.verdicts = (yes, no)

    def full_item(self, rows: Rows, layout: TableLayout, item: int) -> Rows:
        """Appends an item at full length: wrapped picture rows, then its text."""
        encoded, first = layout.items[item], layout.first_row[item]
        if encoded.rows:
            rows.add([self.tokens.vision_start])
            rows.add_grid(self.tokens.image_pad, first, encoded.rows)
            rows.add([self.tokens.vision_end])
        return rows.add(encoded.text_ids)

    def compressed(self, rows: Rows, layout: TableLayout, item: int, pair: int) -> Rows:
        """Appends an item's two tokens."""
        return rows.add(
            [self.tokens.content, self.tokens.relation],
            [layout.content(item), layout.relation(pair)],
        )

    def before_candidates(
        self, layout: TableLayout, query: int, instruction: str | None = None
    ) -> Rows:
        """System, instruction and query: the prefix that a query's prompts share."""
        rows = self._query(layout, query, instruction)
        rows.add([self.tokens.content], [layout.content(query)])
        return rows.add(self._parts["before_candidates"])

    def _query(self, layout: TableLayout, query: int, instruction: str | None) -> Rows:
        """System, instruction and query in full."""
        rows = Rows().add(self._parts["before_instruction"])
        rows.add(encode_text(self.tokenizer, instruction or self.default_instruction))
        return self.full_item(rows.add(self._parts["before_query"]), layout, query)

    def pointwise(
        self, layout: TableLayout, query: int, item: int, *, instruction: str | None = None
    ) -> Rows:
        """The prompt that asks whether one item, at full length, matches the query."""
        rows = self._query(layout, query, instruction).add(self._parts["before_candidate"])
        return self.full_item(rows, layout, item).add(self._parts["after_candidate"])

    def description(self, layout: TableLayout, item: int, *, full_tokens: bool) -> Rows:
        """The prompt that asks what an item shows, from all its rows or its content token."""
        rows = Rows().add(self._parts["before_item"])
        if full_tokens:
            self.full_item(rows, layout, item)
        else:
            rows.add([self.tokens.content], [layout.content(item)])
        return rows.add(self._parts["after_item"])

    def listwise(
        self,
        layout: TableLayout,
        query: int,
        candidates: Sequence[int],
        pairs: Sequence[int],
        *,
        instruction: str | None = None,
        labels: Sequence[int] | None = None,
        full_tokens: bool = False,
    ) -> Rows:
        """The listwise prompt.

        Args:
            query, candidates: item numbers in ``layout``.
            pairs: pair number of each candidate.
            labels: label number of each candidate from 0; in order when None.
            full_tokens: read every candidate at full length (the "without ICM" baseline).
        """
        labels = range(len(candidates)) if labels is None else labels
        rows = self.before_candidates(layout, query, instruction)
        for label, item, pair in zip(labels, candidates, pairs, strict=True):
            rows.add([self.tokens.labels[label]])
            if full_tokens:
                self.full_item(rows, layout, item)
            else:
                self.compressed(rows, layout, item, pair)
        return rows.add(self._parts["after_candidates"])
