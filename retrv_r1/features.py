"""Feature rows of items, encoded once: kept in memory, then on disk, by what an item says."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from retrv_r1.feature_store import FeatureStore, fingerprint
from retrv_r1.images import content_hash
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import EncodedItem, RetrvR1Processor
from retrv_r1.types import Item, ItemError


@dataclass(frozen=True)
class Features:
    """An encoded item without its patches, and its rows ``[n, d]``.

    Attributes:
        key: hash of its content.
        version: of the weights that made the rows: the encoder's, when it was asked.
    """

    item: EncodedItem
    rows: Tensor
    key: str = ""
    version: int = 0


@dataclass(frozen=True)
class FeatureStats:
    """Where items came from so far.

    Args:
        ram_hits, disk_hits: items that were found.
        encoded: distinct items that the model encoded.
        bytes: of rows in memory now.
    """

    ram_hits: int = 0
    disk_hits: int = 0
    encoded: int = 0
    bytes: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of items that were found."""
        found = self.ram_hits + self.disk_hits
        return found / max(1, found + self.encoded)


class FeatureEncoder:
    """Encodes items, each distinct one once, the missing ones in packed batches.

    May be called from several threads; two that miss the same item at once both encode it.

    Args:
        capacity_bytes: rows kept in memory; the least recently used go first.
        batch_rows: rows after which a batch is run. It bounds what the tower holds at once:
            500 large pictures in one batch would need tens of GB at Qwen2.5-VL-3B's sizes.
        directory: where rows are kept on disk as well, for this and later processes.
        disk_bytes: rows kept there.
    Attributes:
        version: of the weights: how often :meth:`clear` was called.
    """

    def __init__(
        self,
        model: RetrvR1ForConditionalGeneration,
        processor: RetrvR1Processor,
        capacity_bytes: int = 256 * 2**20,
        batch_rows: int = 2**14,
        directory: Path | None = None,
        disk_bytes: int = 4 * 2**30,
    ) -> None:
        self.model, self.processor = model, processor
        self.capacity_bytes, self.batch_rows = capacity_bytes, batch_rows
        self.version = 0
        self._store = None if directory is None else FeatureStore(directory, disk_bytes)
        self._fingerprint: str | None = None
        self._kept: OrderedDict[str, Features] = OrderedDict()
        self._stats = FeatureStats()
        self._lock = threading.Lock()

    @torch.no_grad()
    def encode(self, items: Sequence[Item]) -> list[Features]:
        """Features of ``items``, in order; an unusable item is named by its place or id."""
        keys = [self._checked(i, item, content_hash) for i, item in enumerate(items)]
        with self._lock:
            version, folder = self.version, self._folder()
        found = self._in_memory(keys)
        missing: dict[str, int] = {}
        for i, key in enumerate(keys):
            if key not in found:
                missing.setdefault(key, i)
        stored = self._on_disk(missing, folder, version)
        batch: dict[str, EncodedItem] = {}
        encoded: dict[str, Features] = {}
        for key, i in missing.items():
            if key in stored:
                continue
            batch[key] = self._checked(i, items[i], self.processor.encode)
            if sum(map(len, batch.values())) >= self.batch_rows:
                encoded |= self._run(batch, version)
                batch = {}
        if batch:
            encoded |= self._run(batch, version)
        if version == self.version:  # else the weights have changed meanwhile: nobody knows whose
            for key, features in encoded.items():
                if self._store is not None:
                    self._store.put(f"{folder}-{key}", features.item, features.rows)
        self._keep(stored | encoded, version, len(stored), len(encoded))
        found |= stored | encoded
        return [found[key] for key in keys]

    def clear(self) -> None:
        """Forgets every item: for a model whose weights have changed."""
        with self._lock:
            self.model.icm.forget()
            self._kept.clear()
            self._stats = replace(self._stats, bytes=0)
            self._fingerprint = None
            self.version += 1

    def stats(self) -> FeatureStats:
        """Where items came from so far."""
        return self._stats

    def _in_memory(self, keys: Sequence[str]) -> dict[str, Features]:
        with self._lock:
            found = {key: self._kept[key] for key in dict.fromkeys(keys) if key in self._kept}
            for key in found:
                self._kept.move_to_end(key)
            hits = self._stats.ram_hits + len(found)
            self._stats = replace(self._stats, ram_hits=hits)
        return found

    def _on_disk(self, keys: Iterable[str], folder: str, version: int) -> dict[str, Features]:
        if self._store is None:
            return {}
        read = {key: self._store.get(f"{folder}-{key}") for key in keys}
        return {
            key: Features(pair[0], pair[1].to(self.model.device), key, version)
            for key, pair in read.items()
            if pair is not None
        }

    def _folder(self) -> str:
        """The model whose rows are on disk, by its weights; "" without a disk."""
        if self._store is None:
            return ""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.model, self.processor)
        return self._fingerprint

    def _run(self, batch: dict[str, EncodedItem], version: int) -> dict[str, Features]:
        packed = self.processor.pack(list(batch.values())).to(self.model.device)
        rows = self.model.features(packed).split([len(item) for item in batch.values()])
        return {
            key: Features(replace(item, patches=None), part.clone(), key, version)
            for (key, item), part in zip(batch.items(), rows, strict=True)
        }

    @staticmethod
    def _checked(index, item, function):
        try:
            return function(item)
        except ItemError as error:
            name = item.id or ("the query" if index == 0 else f"candidate {index - 1}")
            raise ItemError(f"{name}: {error}") from error

    def _keep(self, new: dict[str, Features], version: int, disk_hits: int, encoded: int) -> None:
        with self._lock:
            if version != self.version:
                new = {}
            size = self._stats.bytes
            for key, features in new.items():
                if (old := self._kept.pop(key, None)) is not None:
                    size -= old.rows.nbytes
                self._kept[key] = features
                size += features.rows.nbytes
            while size > self.capacity_bytes and len(self._kept) > 1:
                _, oldest = self._kept.popitem(last=False)
                size -= oldest.rows.nbytes
            self._stats = replace(
                self._stats,
                disk_hits=self._stats.disk_hits + disk_hits,
                encoded=self._stats.encoded + encoded,
                bytes=size,
            )


def pack_features(features: Sequence[Features]) -> tuple[Tensor, Tensor]:
    """Rows ``[n, d]`` and offsets ``[m + 1]`` of encoded items."""
    lengths = [0, *(len(f.rows) for f in features)]
    return torch.cat([f.rows for f in features]), torch.tensor(lengths).cumsum(0)
