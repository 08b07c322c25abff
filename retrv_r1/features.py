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
    """Encodes items, each distinct one once, all missing ones in one packed batch.

    Args:
        capacity_bytes: rows kept; the least recently used go first.
    """

    def __init__(
        self,
        model: RetrvR1ForConditionalGeneration,
        processor: RetrvR1Processor,
        capacity_bytes: int = 256 * 2**20,
    ) -> None:
        self.model, self.processor = model, processor
        self.capacity_bytes = capacity_bytes
        self._kept: OrderedDict[str, Features] = OrderedDict()
        self._bytes = 0

    def encode(self, items: Sequence[Item]) -> list[Features]:
        """Features of ``items``, in order; an unusable item is named by its place or id."""
        keys = [self._checked(i, item, content_hash) for i, item in enumerate(items)]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        missing = {key: i for i, key in enumerate(keys) if key not in found}
        if missing:
            encoded = [self._checked(i, items[i], self.processor.encode) for i in missing.values()]
            packed = self.processor.pack(encoded).to(self.model.device)
            rows = self.model.features(packed).split([len(item) for item in encoded])
            for key, item, part in zip(missing, encoded, rows, strict=True):
                found[key] = Features(replace(item, patches=None), part.clone())
                self._keep(key, found[key])
        for key in keys:
            if key in self._kept:
                self._kept.move_to_end(key)
        return [found[key] for key in keys]

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
