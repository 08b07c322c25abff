"""Feature rows of items, encoded once: a cache in memory, keyed by what an item says."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from retrv_r1.images import content_hash
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import EncodedItem, RetrvR1Processor
from retrv_r1.types import Item, ItemError


@dataclass(frozen=True)
class Features:
    """An encoded item without its patches, and its rows ``[n, d]``."""

    item: EncodedItem
    rows: Tensor


class FeatureEncoder:
    """Encodes items, each distinct one once, the missing ones in packed batches.

    Args:
        capacity_bytes: rows kept; the least recently used go first.
        batch_rows: rows after which a batch is run. It bounds what the tower holds at once:
            500 large pictures in one batch would need tens of GB at Qwen2.5-VL-3B's sizes.
    """

    def __init__(
        self,
        model: RetrvR1ForConditionalGeneration,
        processor: RetrvR1Processor,
        capacity_bytes: int = 256 * 2**20,
        batch_rows: int = 2**14,
    ) -> None:
        self.model, self.processor = model, processor
        self.capacity_bytes, self.batch_rows = capacity_bytes, batch_rows
        self._kept: OrderedDict[str, Features] = OrderedDict()
        self._bytes = 0

    @torch.no_grad()
    def encode(self, items: Sequence[Item]) -> list[Features]:
        """Features of ``items``, in order; an unusable item is named by its place or id."""
        keys = [self._checked(i, item, content_hash) for i, item in enumerate(items)]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        for key in found:
            self._kept.move_to_end(key)
        missing: dict[str, int] = {}
        for i, key in enumerate(keys):
            if key not in found:
                missing.setdefault(key, i)
        batch: dict[str, EncodedItem] = {}
        for key, i in missing.items():
            batch[key] = self._checked(i, items[i], self.processor.encode)
            if sum(map(len, batch.values())) >= self.batch_rows:
                found |= self._run(batch)
                batch = {}
        if batch:
            found |= self._run(batch)
        for key in missing:
            self._keep(key, found[key])
        return [found[key] for key in keys]

    def clear(self) -> None:
        """Forgets every item: for a model whose weights have changed."""
        self._kept.clear()
        self._bytes = 0

    def _run(self, batch: dict[str, EncodedItem]) -> dict[str, Features]:
        packed = self.processor.pack(list(batch.values())).to(self.model.device)
        rows = self.model.features(packed).split([len(item) for item in batch.values()])
        return {
            key: Features(replace(item, patches=None), part.clone())
            for (key, item), part in zip(batch.items(), rows, strict=True)
        }

    @staticmethod
    def _checked(index, item, function):
        try:
            return function(item)
        except ItemError as error:
            name = item.id or ("the query" if index == 0 else f"candidate {index - 1}")
            raise ItemError(f"{name}: {error}") from error

    def _keep(self, key: str, features: Features) -> None:
        self._kept[key] = features
        self._bytes += features.rows.nbytes
        while self._bytes > self.capacity_bytes and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.rows.nbytes


def pack_features(features: Sequence[Features]) -> tuple[Tensor, Tensor]:
    """Rows ``[n, d]`` and offsets ``[m + 1]`` of encoded items."""
    lengths = [0, *(len(f.rows) for f in features)]
    return torch.cat([f.rows for f in features]), torch.tensor(lengths).cumsum(0)
