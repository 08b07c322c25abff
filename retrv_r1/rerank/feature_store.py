"""Feature rows on disk, for later runs; needs the diskcache library."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from retrv_kernels.extras import install_command
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import EncodedItem, RetrvR1Processor
from retrv_r1.types import RetrvError

CHUNK = 2**24


class FeatureStore:
    """Feature rows by name in a directory that processes may share.

    An entry that cannot be read counts as absent, and one that cannot be written is not kept; a
    cache that cannot be opened is empty and stays so. A damaged or read-only cache or a full disk
    costs time and a warning, but never a request.

    Args:
        directory: the directory; made if it is missing.
        size: largest size in bytes; the least recently used entries are evicted.
    Raises:
        RetrvError: the library is not installed, or ``directory`` is a file.
    """

    def __init__(self, directory: Path, size: int) -> None:
        try:
            import diskcache
        except ImportError as error:
            raise RetrvError(
                f"a feature cache on disk needs diskcache: {install_command('cache')}"
            ) from error
        if directory.exists() and not directory.is_dir():
            raise RetrvError(
                f"cannot use {directory} as a feature cache: it is a file; name a folder"
            )
        self._warned = False
        self._cache: Any = None
        try:
            self._cache = diskcache.Cache(
                str(directory), size_limit=size, eviction_policy="least-recently-used"
            )
        except Exception as error:  # errors of SQLite and of the system
            self._warn(
                f"goes on without the feature cache {directory} ({error}): make it writable, or "
                "delete it if it is damaged"
            )

    def get(self, name: str) -> tuple[EncodedItem, Tensor] | None:
        """The stored item and its rows ``[n, d]``; None if they are absent or damaged."""
        if self._cache is None:
            return None
        try:
            value = self._cache.get(name)
            if value is None:
                return None
            tensors = load(value)
            item = json.loads(bytes(tensors["item"].tolist()))
            rows = tensors["rows"]
            encoded = EncodedItem(
                text_ids=tuple(item["text_ids"]),
                grid=None if item["grid"] is None else tuple(item["grid"]),
                rows=None if item["rows"] is None else tuple(item["rows"]),
                truncated=item["truncated"],
            )
            return (encoded, rows) if len(encoded) == len(rows) else None
        except Exception as error:  # a damaged entry or disk can cause any
            self._warn(f"cannot read from the feature cache: {error}")
            return None

    def put(self, name: str, item: EncodedItem, rows: Tensor) -> None:
        """Stores the rows of an item."""
        if self._cache is None:
            return
        values = {
            "text_ids": item.text_ids,
            "grid": item.grid,
            "rows": item.rows,
            "truncated": item.truncated,
        }
        header = torch.tensor(list(json.dumps(values).encode()), dtype=torch.uint8)
        try:
            self._cache.set(name, save({"item": header, "rows": rows.cpu().contiguous()}))
        except Exception as error:  # a full disk, a lost directory
            self._warn(f"cannot write to the feature cache: {error}; rows are not kept")

    def _warn(self, message: str) -> None:
        if not self._warned:
            warnings.warn(message, stacklevel=2)
        self._warned = True


def fingerprint(model: RetrvR1ForConditionalGeneration, processor: RetrvR1Processor) -> str:
    """Hash of all that features depend on: vision tower, embeddings, preprocessing, vocabulary."""
    digest = hashlib.blake2b(digest_size=16)
    settings = [
        processor.image_processor.to_json_string(),
        str(model.config.pad_to_square),
        f"truncated after {processor.max_text_tokens}",
        json.dumps(sorted(processor.tokenizer.get_vocab().items())),
        str(
            (
                model.config.tower_config or model.config.backbone_config.vision_config
            ).to_json_string()
        ),
    ]
    for setting in settings:
        digest.update(setting.encode())
    tensors = dict(model.visual.state_dict())  # with the statistics of its norms
    tensors["embeddings"] = model.get_input_embeddings().weight
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        values = tensor.detach().reshape(-1).view(torch.uint8)
        for part in values.split(CHUNK):
            digest.update(part.cpu().numpy())
    return digest.hexdigest()
