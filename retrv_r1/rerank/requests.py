"""From encoded items to what an engine runs: prompts in pieces, with the keys that caches go by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from retrv_engine import Piece, Request, Sampling
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.model.prompts import PromptBuilder, Rows, TableLayout
from retrv_r1.rerank.feature_encoder import FeatureEncoder, Features, pack_features
from retrv_r1.types import Item


@dataclass(frozen=True)
class ItemFeatures:
    """An item and its features."""

    item: Item
    features: Features


@dataclass(frozen=True)
class Prepared:
    """A request, the rows of its prompt, and those of them that its candidates take."""

    request: Request
    prompt_rows: int
    candidate_rows: int


@dataclass(frozen=True)
class _Name:
    """How an engine asks for a candidate's full rows: the same content is the same name."""

    key: str
    item: Item = field(compare=False)


@dataclass(frozen=True)
class _Table:
    """Rows that prompts refer to, each with the key of what it holds; see TableLayout."""

    layout: TableLayout
    features: Sequence[Features]
    compressed: Tensor
    keys: Sequence[int]

    def place(self, ref: int) -> tuple[Tensor, int, int]:
        """Table, row and key of what stands at a reference."""
        if ref >= self.layout.rows:
            row = ref - self.layout.rows
            return self.compressed, row, self.keys[len(self.features) + row]
        item = self.layout.first_row.index(ref)  # pieces begin where an item does
        return self.features[item].rows, 0, self.keys[item]


class RequestBuilder:
    """Makes the requests of one model, and loads candidates that are inspected.

    It is the engine's feature source: inspected candidates come from the encoder's cache, or are
    encoded again, all of a step together.
    """

    def __init__(
        self,
        model: RetrvR1ForConditionalGeneration,
        processor: RetrvR1Processor,
        encoder: FeatureEncoder,
    ) -> None:
        self.model, self.processor, self.encoder = model, processor, encoder
        self.prompts = PromptBuilder(processor.tokenizer, model.config.prompts)
        tokens = processor.tokens
        added = processor.tokenizer.added_tokens_decoder.items()
        special = {number for number, token in added if token.special}
        own = {*tokens.labels, tokens.inspect_start, tokens.inspect_end, tokens.think_end}
        # What prompts are built of has no place in a chain of thought.
        self._structure = sorted(special - own)

    def load(self, names: Sequence[Any]) -> list[list[Piece]]:
        """Full rows of candidates, as they are spliced in (the engines' protocol)."""
        found = self.encoder.encode([name.item for name in names])
        return [self._full(features) for features in found]

    def listwise(
        self,
        query: ItemFeatures,
        candidates: Sequence[ItemFeatures],
        *,
        reason: bool,
        full_tokens: bool,
        instruction: str | None,
        sampling: Sampling,
    ) -> Prepared:
        """One prompt over all candidates, each as two tokens or at full length."""
        items = [query, *candidates]
        table = self._table(items, relations=not full_tokens)
        count = len(candidates)
        prompt = self.prompts.listwise(
            table.layout,
            0,
            range(1, count + 1),
            range(count),
            instruction=instruction,
            full_tokens=full_tokens,
        )
        bare = self.prompts.listwise(table.layout, 0, (), (), instruction=instruction)
        labels = self.processor.tokens.labels
        names = [_Name(one.features.key, one.item) for one in candidates]
        request = Request(
            prompt=prompt.pieces(table.place),
            labels=labels[:count],
            inspections=names if reason else (),
            source=self if reason else None,
            reason=reason,
            sampling=sampling,
            banned=(*self._structure, *labels[count:]),
        )
        return Prepared(request, len(prompt), len(prompt) - len(bare))

    def pointwise(
        self, query: ItemFeatures, candidates: Sequence[ItemFeatures], *, instruction: str | None
    ) -> list[Prepared]:
        """A prompt for each candidate, at full length; its labels are "yes" and "no"."""
        items = [query, *candidates]
        table = self._table(items, relations=False)
        made = []
        for number in range(1, len(items)):
            prompt = self.prompts.pointwise(table.layout, 0, number, instruction=instruction)
            request = Request(prompt.pieces(table.place), self.prompts.verdicts, reason=False)
            rows = len(self.prompts.full_item(Rows(), table.layout, number))
            made.append(Prepared(request, len(prompt), rows))
        return made

    def _table(self, items: Sequence[ItemFeatures], *, relations: bool) -> _Table:
        """What prompts of a query, the first of ``items``, and its candidates refer to."""
        features = [one.features for one in items]
        layout = TableLayout.of([one.item for one in features])
        icm = self.model.icm
        names = [(one.version, one.key) for one in features]
        keys = [_key("full", *name) for name in names]
        keys += [_key("content", *name) for name in names]
        if not relations:  # only the query's content token stands in such prompts
            rows, offsets = pack_features(features[:1])
            return _Table(layout, features, icm.content(rows, offsets), keys)
        rows, offsets = pack_features(features)
        candidates = torch.arange(1, len(items))
        tokens = icm.tokens(rows, offsets, candidates, torch.zeros_like(candidates))
        keys += [_key("relation", icm.int8_keys, name, names[0]) for name in names[1:]]
        return _Table(layout, features, torch.cat(tokens).to(rows.dtype), keys)

    def _full(self, features: Features) -> list[Piece]:
        layout = TableLayout.of([features.item])
        key = _key("full", features.version, features.key)
        rows = self.prompts.full_item(Rows(), layout, 0)
        return rows.pieces(lambda _: (features.rows, 0, key))


def _key(*parts: object) -> int:
    """63 bits of a hash."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
