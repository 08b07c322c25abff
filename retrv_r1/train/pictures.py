"""Training pictures: the arrays of one or more data sets, and patches of whole batches."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from retrv_r1.data.pictures import PictureFolder
from retrv_r1.images import pad_to_square
from retrv_r1.types import RetrvError


class NoPictures(RetrvError, FileNotFoundError):
    """A folder that is not a data set with pictures."""


class PictureBank:
    """The pictures of one or more data sets, square RGBA, by their paths in the data set.

    Args:
        pixels: arrays of pictures, one after the other: ``uint8 [n, s, s, 4]``, or
            ``uint8 [n, s, s]`` for the coverage of glyphs, which have no colour of their own;
            memory maps are enough.
        paths: path of each picture in its data set.
        parts: folder of each data set, and number of its first picture.
    Attributes:
        is_glyph: whether a picture is a glyph, ``[n]``.
    """

    def __init__(
        self,
        pixels: np.ndarray | Sequence[np.ndarray],
        paths: Sequence[str],
        parts: Sequence[tuple[Path, int]] = (),
    ) -> None:
        arrays = [pixels] if isinstance(pixels, np.ndarray) else list(pixels)
        sides = {array.shape[1:3] for array in arrays}
        shaped = all(a.ndim == 3 or (a.ndim == 4 and a.shape[-1] == 4) for a in arrays)
        if not shaped or len(sides) != 1 or len(paths) != sum(map(len, arrays)):
            shapes = [array.shape for array in arrays]
            raise ValueError(f"{len(paths)} paths for pictures of shapes {shapes}")
        self.arrays = arrays
        self.starts = np.cumsum([0, *map(len, arrays)])
        self.is_glyph = np.repeat([a.ndim == 3 for a in arrays], np.diff(self.starts))
        self.paths = list(paths)
        self.parts = list(parts)
        self.row_of = {path: row for row, path in enumerate(self.paths)}
        self._stores: list[Tensor] = []

    @classmethod
    def of_files(cls, files: Mapping[Path, Sequence[str]], side: int) -> PictureBank:
        """Pictures that are decoded from their files whenever they are asked for.

        Args:
            files: paths of pictures in each data set, by its folder.
            side: side in pixels of the squares that they are fitted into.
        """
        arrays: Any = [FilePictures(root, paths, side) for root, paths in files.items() if paths]
        return cls(arrays, [path for paths in files.values() for path in paths])

    @classmethod
    def load(cls, *roots: Path) -> PictureBank:
        """Reads the pictures of built data sets: ``pictures.jsonl``, and the arrays beside it."""
        arrays: list[np.ndarray] = []
        rows: list[dict[str, Any]] = []
        parts = []
        for root in roots:
            index = root / "pictures.jsonl"
            if not index.is_file():
                what = "has no pictures.jsonl" if root.is_dir() else "is not a folder"
                raise NoPictures(
                    f"{root} {what}: `retrv-r1 data pictographs DIR` builds a data set"
                )
            parts.append((root, len(rows)))
            rows += map(json.loads, index.read_text(encoding="utf-8").splitlines())
            names = ("pictures.npy", "glyphs.npy")
            arrays += [np.load(root / n, mmap_mode="r") for n in names if (root / n).is_file()]
        return cls(arrays, [row["img_path"] for row in rows], parts)

    def to(self, device: torch.device) -> PictureBank:
        """This bank, with its pictures copied to a GPU as bytes; nothing changes on a CPU."""
        if device.type != "cpu" and not any(isinstance(a, FilePictures) for a in self.arrays):
            self._stores = [torch.from_numpy(np.array(array)).to(device) for array in self.arrays]
        return self

    def rgba(self, rows: Sequence[int] | Tensor) -> Tensor:
        """Pictures by rows of the bank, ``[b, 4, s, s]`` in [0, 1], on the bank's device.

        Glyphs are black.
        """
        numbers = np.asarray(torch.as_tensor(rows).cpu())
        which = np.searchsorted(self.starts, numbers, side="right") - 1
        side = self.arrays[0].shape[1]
        device = self._stores[0].device if self._stores else None
        out = torch.zeros(len(numbers), 4, side, side, device=device)
        for part in np.unique(which).tolist():
            found = np.flatnonzero(which == part)
            places = numbers[found] - self.starts[part]
            if self._stores:
                pixels = self._stores[part][torch.as_tensor(places, device=device)]
            else:
                pixels = torch.from_numpy(self.arrays[part][places])
            # A glyph's coverage is its alpha, the last channel.
            first = 0 if pixels.ndim == 4 else 3
            shown = pixels.permute(0, 3, 1, 2) if pixels.ndim == 4 else pixels[:, None]
            out[torch.as_tensor(found, device=device), first:] = shown.float() / 255
        return out


class FilePictures:
    """Picture files in the form of an array ``uint8 [n, side, side, 4]``: decoded when indexed.

    Each is centred in a white square, as a model with ``pad_to_square`` reads it.
    """

    ndim = 4

    def __init__(self, root: Path, paths: Sequence[str], side: int) -> None:
        self.folder, self.paths = PictureFolder(root), list(paths)
        self.shape = (len(paths), side, side, 4)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        # Decoders leave the interpreter's lock.
        with ThreadPoolExecutor() as threads:
            return np.stack(list(threads.map(self._one, rows.tolist())))

    def _one(self, row: int) -> np.ndarray:
        square = pad_to_square(self.folder.open(self.paths[row]))
        return np.asarray(square.resize(self.shape[1:3], Image.Resampling.BICUBIC).convert("RGBA"))


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


def normalized(image: Tensor, processor: Qwen2VLImageProcessorPil) -> Tensor:
    """Pictures ``[b, 3, s, s]`` in [0, 1], normalized as the processor does it."""
    mean, std = (
        torch.tensor(values, device=image.device).view(3, 1, 1)
        for values in (processor.image_mean, processor.image_std)
    )
    return (image - mean) / std


def to_patches(
    image: Tensor, processor: Qwen2VLImageProcessorPil, side: int
) -> tuple[Tensor, Tensor]:
    """Square pictures ``[b, 3, s, s]`` in [0, 1] → patches ``[b·g², dim]`` and grids ``[b, 3]``.

    Patch order and normalization are the processor's, for whole batches.
    """
    image = normalized(resized(image, side), processor)
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
