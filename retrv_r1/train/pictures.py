"""Training pictures: one array of a data set's pictures, and patches of whole batches."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from retrv_r1.types import RetrvError


class NoPictures(RetrvError, FileNotFoundError):
    """A folder that is not a data set with pictures."""


class PictureBank:
    """All pictures of a data set, square RGBA, by their paths in the data set.

    Rows are the pictures with colours of their own, then the glyphs, which have one colour.

    Args:
        pixels: pixels of the pictures, ``uint8 [n, s, s, 4]``; a memory map is enough.
        paths: path of each picture in the data set, of the glyphs too.
        concepts: concept that each picture shows, the same for every style; None if not known.
        glyphs: alpha of the glyphs, ``uint8 [m, s, s]``; None if there are none.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        paths: Sequence[str],
        concepts: Sequence[str | None],
        glyphs: np.ndarray | None = None,
    ) -> None:
        if pixels.ndim != 4 or pixels.shape[-1] != 4:
            raise ValueError(f"pictures of shape {pixels.shape}: not [n, s, s, 4]")
        if glyphs is None:
            glyphs = np.zeros((0, *pixels.shape[1:3]), np.uint8)
        if glyphs.ndim != 3 or glyphs.shape[1:] != pixels.shape[1:3]:
            raise ValueError(f"glyphs of shape {glyphs.shape} for pictures of {pixels.shape}")
        if len(paths) != len(pixels) + len(glyphs):
            raise ValueError(f"{len(paths)} paths for {len(pixels)} pictures, {len(glyphs)} glyphs")
        self.pixels = pixels
        self.glyphs = glyphs
        self.paths = list(paths)
        self.concepts = list(concepts)
        self.row_of = {path: row for row, path in enumerate(self.paths)}
        self._store: tuple[Tensor, Tensor] | None = None

    @classmethod
    def load(cls, root: Path) -> PictureBank:
        """Reads ``pictures.jsonl``, ``pictures.npy`` and, if there is one, ``glyphs.npy``."""
        index = root / "pictures.jsonl"
        if not index.is_file():
            what = "has no pictures.jsonl" if root.is_dir() else "is not a folder"
            raise NoPictures(f"{root} {what}: `retrv-r1 data pictographs DIR` builds a data set")
        lines = index.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        paths = [row["img_path"] for row in rows]
        concepts = [row.get("code") for row in rows]
        arrays = [
            np.load(path, mmap_mode="r") if path.exists() else None
            for path in (root / "pictures.npy", root / "glyphs.npy")
        ]
        if arrays[0] is None:
            raise NoPictures(f"{root} has no pictures.npy: build the data set again")
        return cls(arrays[0], paths, concepts, arrays[1])

    def to(self, device: torch.device) -> PictureBank:
        """This bank, with its pictures copied to a GPU as bytes; nothing changes on a CPU."""
        if device.type != "cpu":
            pixels, glyphs = (torch.from_numpy(np.array(a)) for a in (self.pixels, self.glyphs))
            self._store = pixels.to(device), glyphs.to(device)
        return self

    def rgba(self, rows: Sequence[int] | Tensor, colours: Tensor | None = None) -> Tensor:
        """Pictures by rows of the bank, ``[b, 4, s, s]`` in [0, 1], on the bank's device.

        Args:
            colours: colour of each glyph, ``[b, 3]`` in [0, 1]; black when None. Pictures with
                colours of their own keep them.
        """
        rows = torch.as_tensor(rows)
        glyph = rows >= len(self.pixels)
        device = torch.device("cpu") if self._store is None else self._store[0].device
        side = self.pixels.shape[1]
        result = torch.zeros(len(rows), 4, side, side, device=device)
        if not bool(glyph.all()):
            result[~glyph] = self._read(0, rows[~glyph]).permute(0, 3, 1, 2).float() / 255
        if bool(glyph.any()):
            result[glyph, 3] = self._read(1, rows[glyph] - len(self.pixels)).float() / 255
            if colours is not None:
                result[glyph, :3] = colours[glyph].to(device)[:, :, None, None]
        return result

    def _read(self, array: int, rows: Tensor) -> Tensor:
        """Rows of the pictures (0) or of the glyphs (1), as bytes."""
        if self._store is not None:
            return self._store[array][rows.to(self._store[array].device)]
        return torch.from_numpy((self.pixels, self.glyphs)[array][rows.cpu().numpy()])


def on_white(rgba: Tensor) -> Tensor:
    """Pictures ``[b, 4, s, s]`` over white, as picture files are read: ``[b, 3, s, s]``."""
    alpha = rgba[:, 3:]
    return rgba[:, :3] * alpha + (1 - alpha)


def resized(image: Tensor, side: int) -> Tensor:
    """Square pictures ``[b, 3, s, s]`` resized to another side, as the processor does it."""
    if image.shape[-1] == side:
        return image
    return torch.nn.functional.interpolate(
        image, size=(side, side), mode="bicubic", antialias=True, align_corners=False
    ).clamp(0, 1)


def to_patches(
    image: Tensor, processor: Qwen2VLImageProcessorPil, side: int
) -> tuple[Tensor, Tensor]:
    """Square pictures ``[b, 3, s, s]`` in [0, 1] → patches ``[b·g², dim]`` and grids ``[b, 3]``.

    Patch order and normalization are the processor's, for whole batches.
    """
    image = resized(image, side)
    mean, std = (
        torch.tensor(values, device=image.device).view(3, 1, 1)
        for values in (processor.image_mean, processor.image_std)
    )
    image = (image - mean) / std
    patch, merge = processor.patch_size, processor.merge_size
    batch, grid = len(image), side // patch
    x = image.view(batch, 3, grid // merge, merge, patch, grid // merge, merge, patch)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
    x = x.expand(*x.shape[:6], processor.temporal_patch_size, *x.shape[7:])
    return x.reshape(batch * grid * grid, -1), torch.tensor([[1, grid, grid]] * batch)


def side_of(processor: Qwen2VLImageProcessorPil) -> int:
    """Side in pixels to which the processor resizes a square picture."""
    return math.isqrt(processor.size["longest_edge"])


def merged_grid(processor: Qwen2VLImageProcessorPil) -> tuple[int, int]:
    """Grid (h, w) of a square picture's rows after the tower's merging."""
    rows = side_of(processor) // processor.patch_size // processor.merge_size
    return rows, rows
