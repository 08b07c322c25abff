"""Vectors of pools, embedded once and kept in memory-mapped files."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from retrv_r1.eval.cells import EvalError
from retrv_r1.eval.progress import bar
from retrv_r1.types import Item

BLOCK = 512
"""Candidates that are read and embedded at once; only their items are in memory."""

_HASH = 12  # digits of a hash in a file's name


class VectorFile:
    """Vectors of one pool, ``[p, e]`` in float32.

    Finished blocks are on disk at once: a killed run goes on behind the last of them.

    Args:
        folder: folder of the file; made if it is missing.
        pool: name of the pool. Vectors of an earlier content of it are removed.
        content: hash of the pool's content.
        model: hash of what decides the vectors.
        size: number of candidates.
    """

    def __init__(self, folder: Path, pool: str, content: str, model: str, size: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        current = f"{pool}-{content[:_HASH]}-"
        for path in folder.glob(f"{glob.escape(pool)}-{'?' * _HASH}-*"):
            if not path.name.startswith(current):
                path.unlink()
        key = current + model[:_HASH]
        self.path, self.size = folder / f"{key}.npy", size
        self._partial, self._count = folder / f"{key}.partial", folder / f"{key}.count"
        self._cut = folder / f"{key}.cut"

    @property
    def cut(self) -> int | None:
        """Number of texts that the embedder cut; None if that is not known."""
        try:
            return int(self._cut.read_text())
        except (OSError, ValueError):
            return None

    def fill(self, embed: _Embed, items: _Items, label: str) -> Tensor:
        """All vectors, as a tensor over the memory-mapped file.

        Args:
            embed: function that gives vectors ``[m, e]`` of items, and how many of their texts it
                cut.
            items: function that gives the items of consecutive candidates, from one number to
                another.
            label: name of the pool for the progress bar.
        """
        if not self.path.is_file():
            self._embed(embed, items, label)
        # Copy on write: PyTorch wants an array that can be written, and nothing here writes.
        return torch.from_numpy(np.load(self.path, mmap_mode="c"))

    def _embed(self, embed: _Embed, items: _Items, label: str) -> None:
        (done, cut), kept = self._done(), None
        starts = range(done, self.size, BLOCK)
        for start in bar(starts, f"embedding {label}", len(starts)):
            stop = min(start + BLOCK, self.size)
            block, hit = embed(items(start, stop))
            vectors, cut = block.numpy(), cut + hit
            if kept is None:
                kept = self._open(vectors.shape[1], fresh=start == 0)
            kept[start:stop] = vectors
            kept.flush()
            self._write_count(stop, cut)
        del kept
        self._cut.write_text(str(cut))
        os.replace(self._partial, self.path)
        self._count.unlink()

    def _open(self, width: int, *, fresh: bool) -> np.memmap:
        """The mapped file, with its space on disk: a write without space kills the process."""
        if not fresh:
            kept = np.lib.format.open_memmap(self._partial, mode="r+")
        else:
            shape = (self.size, width)
            kept = np.lib.format.open_memmap(self._partial, "w+", np.float32, shape)
        size = self._partial.stat().st_size
        try:
            with self._partial.open("r+b") as handle:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(handle.fileno(), 0, size)
        except OSError as error:
            raise EvalError(
                f"no space for the {size / 1e6:.0f} MB of {self._partial} ({error.strerror}); "
                "name an --out on a larger disk"
            ) from error
        return kept

    def _done(self) -> tuple[int, int]:
        """Numbers of candidates that an earlier run embedded, and of texts that it cut."""
        try:
            done, cut = map(int, self._count.read_text().split())
        except (OSError, ValueError):
            return 0, 0
        return (done, cut) if self._partial.is_file() else (0, 0)

    def _write_count(self, done: int, cut: int) -> None:
        new = self._count.with_suffix(".new")
        new.write_text(f"{done} {cut}")
        os.replace(new, self._count)


_Embed = Callable[[Sequence[Item]], tuple[Tensor, int]]
_Items = Callable[[int, int], Sequence[Item]]
