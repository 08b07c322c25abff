"""Opens the pictures of a data set, whether they are files or rows of an array."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from retrv_r1.images import load_image

ARRAYS = ("pictures.npy", "glyphs.npy")
"""Arrays of a data set's pictures, whose rows are numbered one after the other."""


class PictureFolder:
    """The pictures of one data set.

    Args:
        root: folder of the data set.
        max_pixels: most pixels of an opened picture.
    """

    def __init__(self, root: Path, max_pixels: int = 2**20) -> None:
        self.root, self.max_pixels = root, max_pixels

    def open(self, path: str) -> Image.Image:
        """A picture by its path in the data set, RGB on white.

        Raises:
            ItemError: there is no such picture, or it is damaged.
        """
        if not (self.root / path).is_file() and (row := self._rows.get(path)) is not None:
            return self._drawn(row)
        return load_image(self.root / path, max_pixels=self.max_pixels)

    @cached_property
    def _rows(self) -> dict[str, int]:
        index = self.root / "pictures.jsonl"
        if not index.is_file():
            return {}
        with index.open(encoding="utf-8") as lines:
            return {row["img_path"]: n for n, row in enumerate(map(json.loads, lines))}

    @cached_property
    def _arrays(self) -> list[np.ndarray]:
        paths = [self.root / name for name in ARRAYS]
        return [np.load(path, mmap_mode="r") for path in paths if path.is_file()]

    def _drawn(self, row: int) -> Image.Image:
        """A row of the arrays; a glyph is black."""
        for pixels in self._arrays:
            if row < len(pixels):
                break
            row -= len(pixels)
        shown = np.array(pixels[row])
        if shown.ndim == 2:
            shown = np.dstack([np.zeros((*shown.shape, 3), np.uint8), shown])
        return load_image(Image.fromarray(shown, "RGBA"), max_pixels=self.max_pixels)
