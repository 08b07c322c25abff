"""Feature rows of items, encoded once and kept in memory and on disk by content."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import torch
from PIL import Image
from torch import Tensor

from retrv_r1 import memory
from retrv_r1.images import content_hash, describe
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import EncodedItem, RetrvR1Processor
from retrv_r1.rerank.feature_store import FeatureStore, fingerprint
from retrv_r1.types import Item, ItemError

T = TypeVar("T")
Origin: TypeAlias = Literal["memory", "disk", "model"]

LARGE_BYTES, LARGE_PIXELS = 2**14, 2**16
"""Sizes (as a file, decoded) from which a thread of its own reads a picture."""


@dataclass(frozen=True)
class Features:
    """Features of one item.

    Attributes:
        item: the encoded item without its patches.
        rows: feature rows ``[n, d]``.
        key: hash of the item's content.
        version: version of the weights that made the rows; see :class:`FeatureEncoder`.
        origin: where the rows were found, or that the model made them.
    """

    item: EncodedItem
    rows: Tensor
    key: str = ""
    version: int = 0
    origin: Origin = "memory"


@dataclass(frozen=True)
class FeatureStats:
    """Counts of a feature encoder.

    Args:
        ram_hits: items found in memory.
        disk_hits: items found on disk.
        encoded: distinct items that the model encoded.
        bytes: size of the rows in memory now.
    """

    ram_hits: int = 0
    disk_hits: int = 0
    encoded: int = 0
    bytes: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of items that were found instead of encoded."""
        found = self.ram_hits + self.disk_hits
        return found / max(1, found + self.encoded)


class FeatureEncoder:
    """Encodes each distinct item once; items that are not cached are encoded in packed batches.

    May be called from several threads; two that miss the same item at once both encode it.

    Args:
        capacity_bytes: bytes of rows to keep in memory; the least recently used are evicted. None:
            chosen by the device at the first request, see :mod:`retrv_r1.memory`.
        batch_rows: rows after which a batch is run; None as above. It bounds the memory of the
            vision tower: 500 large pictures in one batch would need tens of GB at the sizes of
            Qwen2.5-VL-3B.
        directory: directory that keeps rows for later processes as well.
        disk_bytes: bytes of rows to keep there.
        workers: threads that read pictures; the number of processors when None.
    Attributes:
        version: version of the weights: the number of calls of :meth:`clear`.
    """

    def __init__(
        self,
        model: RetrvR1ForConditionalGeneration,
        processor: RetrvR1Processor,
        capacity_bytes: int | None = None,
        batch_rows: int | None = None,
        directory: Path | None = None,
        disk_bytes: int = 4 * 2**30,
        workers: int | None = None,
    ) -> None:
        self.model, self.processor = model, processor
        self._given = capacity_bytes, batch_rows
        self.workers = workers or os.cpu_count() or 1
        self.version = 0
        self._store = None if directory is None else FeatureStore(directory, disk_bytes)
        self._fingerprint: str | None = None
        self._kept: OrderedDict[str, Features] = OrderedDict()
        self._stats = FeatureStats()
        self._lock = threading.Lock()

    @cached_property
    def capacity_bytes(self) -> int:
        given = self._given[0]
        return memory.feature_bytes(self.model.device) if given is None else given

    @cached_property
    def batch_rows(self) -> int:
        given = self._given[1]
        if given is None:
            return memory.tower_rows_at_once(self.model.visual, self.model.device)
        return given

    @torch.no_grad()
    def encode(self, items: Sequence[Item], places: Sequence[int] | None = None) -> list[Features]:
        """Features of ``items``, in their order.

        Args:
            places: place of each item in its list, in which the query has place 0.
        Raises:
            ItemError: an item cannot be used; the message names it by its id or place.
        """
        places = range(len(items)) if places is None else places
        pairs = zip(places, items, strict=True)
        keys = [self._checked(place, item, content_hash) for place, item in pairs]
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
        wanted = {key: (places[i], items[i]) for key, i in missing.items() if key not in stored}
        for key, item in zip(wanted, self._read(list(wanted.values())), strict=True):
            batch[key] = item
            if sum(map(len, batch.values())) >= self.batch_rows:
                encoded |= self._run(batch, version)
                batch = {}
        if batch:
            encoded |= self._run(batch, version)
        if version == self.version:  # else the weights have changed, and rows of both would mix
            for key, features in encoded.items():
                if self._store is not None:
                    self._store.put(f"{folder}-{key}", features.item, features.rows)
        self._keep(stored | encoded, version, len(stored), len(encoded))
        found |= stored | encoded
        return [found[key] for key in keys]

    def clear(self) -> None:
        """Forgets all items, after the model's weights have changed."""
        with self._lock:
            self.model.icm.forget()
            self._kept.clear()
            self._stats = replace(self._stats, bytes=0)
            self._fingerprint = None
            self.version += 1

    def stats(self) -> FeatureStats:
        """Counts since the encoder was made."""
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
            key: Features(pair[0], pair[1].to(self.model.device), key, version, "disk")
            for key, pair in read.items()
            if pair is not None
        }

    def _folder(self) -> str:
        """Prefix of names on disk: a hash of the model; "" without a disk."""
        if self._store is None:
            return ""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.model, self.processor)
        return self._fingerprint

    def _read(self, wanted: Sequence[tuple[int, Item]]) -> Iterator[EncodedItem]:
        """Reads items in order; threads read ahead where several items have large pictures.

        Decoding and resizing release the GIL. Reading ahead is limited, so that patches of a long
        list do not pile up.
        """
        if sum(_is_large(item) for _, item in wanted) < 2:
            yield from (self._read_one(*one) for one in wanted)
            return
        ahead: deque[Future[EncodedItem]] = deque()
        try:
            for one in wanted:
                ahead.append(self._threads.submit(self._read_one, *one))
                if len(ahead) > 2 * self.workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:  # after an unusable item
            for future in ahead:
                future.cancel()

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.workers, "retrv-pictures")

    def _read_one(self, index: int, item: Item) -> EncodedItem:
        """Encodes an item, with patches in the dtype of the vision tower."""
        encoded = self._checked(index, item, self.processor.encode)
        if encoded.patches is None:
            return encoded
        return replace(encoded, patches=encoded.patches.to(self.model.visual.dtype))

    def _run(self, batch: dict[str, EncodedItem], version: int) -> dict[str, Features]:
        device = self.model.device
        pin = device.type == "cuda" and torch.cuda.is_available()  # an emulated GPU cannot
        packed = self.processor.pack(list(batch.values()), pin=pin).to(device)
        rows = self.model.features(packed).split([len(item) for item in batch.values()])
        return {
            key: Features(replace(item, patches=None), part.clone(), key, version, "model")
            for (key, item), part in zip(batch.items(), rows, strict=True)
        }

    @staticmethod
    def _checked(index: int, item: Item, function: Callable[[Item], T]) -> T:
        """``function(item)``, with errors that name the item."""
        try:
            return function(item)
        except ItemError as error:
            if item.image is not None and item.id == describe(item.image):
                raise  # the message names the picture already
            name = item.id_text or ("the query" if index == 0 else f"candidate {index - 1}")
            raise ItemError(f"{name}: {error}") from error

    def _keep(self, new: dict[str, Features], version: int, disk_hits: int, encoded: int) -> None:
        with self._lock:
            if version != self.version:
                new = {}
            size = self._stats.bytes
            for key, features in new.items():
                if (old := self._kept.pop(key, None)) is not None:
                    size -= old.rows.nbytes
                self._kept[key] = replace(features, origin="memory")
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


def _is_large(item: Item) -> bool:
    """Whether reading an item's picture is worth a thread.

    50 icons of 3 KB, 1 ms each, took a sixth longer to read with threads than without.
    """
    if isinstance(item.image, Image.Image):
        return item.image.width * item.image.height >= LARGE_PIXELS
    if isinstance(item.image, bytes):
        return len(item.image) >= LARGE_BYTES
    try:
        return item.image is not None and os.path.getsize(item.image) >= LARGE_BYTES
    except OSError:  # gone since it was hashed; reading it will raise
        return False


def pack_features(features: Sequence[Features]) -> tuple[Tensor, Tensor]:
    """Rows ``[n, d]`` and offsets ``[m + 1]`` of several items."""
    lengths = [0, *(len(f.rows) for f in features)]
    return torch.cat([f.rows for f in features]), torch.tensor(lengths).cumsum(0)
