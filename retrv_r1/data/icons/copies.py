"""Finds pictures that repeat a held-out hand's drawing in another set, colour, weight or size.

A drawing is described by small maps of what is seen: cropped to the drawing, padded to a square
and reduced to 16 x 16, less their mean, of length one. Two maps are compared by their product, a
correlation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

SIDE = 16
SAME_NAME = {"shape": 0.90, "colours": 0.90, "edges": 0.80}
"""Correlation of two drawings of one concept from which one is a copy, by kind of map."""
ANY_NAME = 0.97  # the same, whatever they are called; for simple shapes also of one concept
RESEMBLES = {"shape": 0.85, "colours": 0.80, "edges": 0.60}
"""Median correlation of the concepts that two sets share from which one set copies the other.

Measured on the sets of the package: `edges` of emojione-monotone with emojione 0.79, the next
0.46; `shape` of meteor-icons and feather with lucide 0.94 and 0.87, the next 0.83, which are sets
of plain arrows; `colours` 0.66 at most between sets of different hands.
"""
SHARED_CONCEPTS = 20  # concepts that two sets must share to be compared
SIMPLE = 60.0  # total variation of a map below which a shape is anybody's: an arrow, a plus
_BLOCK = 2048
_INK = 40  # of 255


def maps_of(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Descriptions of a picture: `shape` of a glyph, `colours` of a picture, `edges` of both.

    Args:
        pixels: alpha `[s, s]` or RGBA `[s, s, 4]`, uint8, not empty.

    Returns:
        `float16` vectors of length one.
    """
    glyph = pixels.ndim == 2
    alpha = pixels if glyph else pixels[..., 3]
    image = Image.fromarray(pixels)
    rows, columns = np.nonzero((alpha > _INK).any(1))[0], np.nonzero((alpha > _INK).any(0))[0]
    image = image.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    edge = max(image.size)
    square = Image.new(image.mode, (edge, edge), 0 if glyph else (0, 0, 0, 0))
    square.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
    if glyph:
        small = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
        grey = 255 - np.asarray(square.resize((48, 48), Image.Resampling.BOX), np.float32)
        return {"shape": _unit(small), "edges": _edges(grey)}
    white = Image.new("RGBA", square.size, "white")
    white.alpha_composite(square)
    small = np.asarray(white.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
    cover = np.asarray(square.getchannel("A").resize((SIDE, SIDE), Image.Resampling.BOX))
    both = np.concatenate([small, cover[..., None].astype(np.float32)], axis=-1)
    grey = np.asarray(white.convert("L").resize((48, 48), Image.Resampling.BOX), np.float32)
    return {"colours": _unit(both - both.mean((0, 1))), "edges": _edges(grey)}


def _unit(values: np.ndarray) -> np.ndarray:
    flat = values.ravel() - values.mean()
    return (flat / max(float(np.linalg.norm(flat)), 1e-6)).astype(np.float16)


def _edges(grey: np.ndarray) -> np.ndarray:
    """Strength of the edges of `[48, 48]`, pooled to 16 x 16; strong ones count no more."""
    down, right = np.zeros_like(grey), np.zeros_like(grey)
    down[1:], right[:, 1:] = np.diff(grey, axis=0), np.diff(grey, axis=1)
    strength = np.minimum(np.hypot(down, right), 96)
    return _unit(strength.reshape(SIDE, 3, SIDE, 3).mean((1, 3)))


def variation(pixels: np.ndarray) -> float:
    """Total variation of a glyph's map in units of full ink: how much there is to draw."""
    small = np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX))
    ink = small.astype(np.float32) / 255
    return float(np.abs(np.diff(ink, axis=0)).sum() + np.abs(np.diff(ink, axis=1)).sum())


@dataclass(frozen=True)
class Nearest:
    """The held-out drawing that is nearest to each of some pictures.

    Args:
        index: number of the held-out drawing.
        score: correlation with it.
    """

    index: np.ndarray
    score: np.ndarray


def nearest(held: np.ndarray, others: np.ndarray) -> Nearest:
    """Nearest of `held` `[h, d]` to each of `others` `[n, d]`, vectors of length one."""
    index, score = np.zeros(len(others), np.int64), np.full(len(others), -1, np.float32)
    if not len(held):
        return Nearest(index, score)
    table = held.astype(np.float32).T.copy()
    for start in range(0, len(others), _BLOCK):
        product = others[start : start + _BLOCK].astype(np.float32) @ table
        part = product.argmax(1)
        index[start : start + _BLOCK] = part
        score[start : start + _BLOCK] = product[np.arange(len(part)), part]
    return Nearest(index, score)
