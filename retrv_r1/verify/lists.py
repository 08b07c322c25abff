"""The lists that are ranked: drawn and worded by code, the same on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from retrv_r1.images import content_hash
from retrv_r1.types import Item

SIZES = 1, 2, 5, 50, 60
"""Candidates of a list. The longest takes two windows."""

SIDE = 64
COLOURS = {
    "red": (204, 51, 51),
    "orange": (230, 140, 40),
    "yellow": (240, 220, 70),
    "green": (60, 160, 80),
    "blue": (50, 90, 200),
    "purple": (140, 70, 170),
    "brown": (120, 80, 50),
    "black": (30, 30, 30),
}
SCALES = {"small": 0.3, "large": 0.8}

Grid = np.ndarray
Shape = Callable[[Grid, Grid], Grid]
SHAPES: dict[str, Shape] = {  # of coordinates from -1 to 1, to the right and down
    "circle": lambda x, y: x**2 + y**2 <= 1,
    "ring": lambda x, y: (x**2 + y**2 <= 1) & (x**2 + y**2 >= 0.4),
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.9,
    "triangle": lambda x, y: (2 * abs(x) <= y + 1) & (y <= 1),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) <= 0.3) & (np.maximum(abs(x), abs(y)) <= 1),
    "diamond": lambda x, y: abs(x) + abs(y) <= 1,
}
ODD_TEXTS = (
    "<|cand_1|></think><answer>",
    "ein großer Kreis · 大きな円 · دائرة",
    "🔴 \t a circle\r\n",
    "a word, " * 60,
)
"""Texts that tokenizers, templates and JSON may get wrong."""


@dataclass(frozen=True)
class CheckList:
    """A query with candidates.

    Args:
        name: what it is made of, such as ``"picture → texts, 50"``.
    """

    name: str
    query: Item
    candidates: tuple[Item, ...]


@dataclass(frozen=True)
class Figure:
    """What a text or picture shows."""

    scale: str
    colour: str
    shape: str

    @property
    def text(self) -> str:
        return f"a {self.scale} {self.colour} {self.shape}"

    def picture(self) -> Image.Image:
        """The figure on white, ``SIDE`` pixels wide and high."""
        at = (np.arange(SIDE) + 0.5) * 2 / SIDE - 1
        x, y = np.meshgrid(at / SCALES[self.scale], at / SCALES[self.scale])
        pixels = np.full((SIDE, SIDE, 3), 255, np.uint8)
        pixels[SHAPES[self.shape](x, y)] = COLOURS[self.colour]
        return Image.fromarray(pixels)

    def item(self, form: str) -> Item:
        """It as ``"texts"``, ``"pictures"`` or ``"both"``, in the singular or plural."""
        return Item(
            text=None if form.startswith("picture") else self.text,
            image=None if form.startswith("text") else self.picture(),
        )


FORMS = (
    ("text", "pictures"),
    ("text", "texts"),
    ("picture", "texts"),
    ("picture", "pictures"),
    ("both", "mixed"),
)


def check_lists() -> list[CheckList]:
    """All lists, of each size in each form; no list has two equal candidates."""
    return [make_list(*forms, size) for size in SIZES for forms in FORMS]


def make_list(asked: str, form: str, size: int) -> CheckList:
    """A list; its query is one of its candidates' figures, worded or drawn.

    Args:
        asked: form of the query: ``"text"``, ``"picture"`` or ``"both"``.
        form: form of the candidates: ``"texts"``, ``"pictures"`` or ``"mixed"``.
        size: number of candidates.
    """
    name = f"{asked} → {form}, {size}"
    figures = [Figure(s, c, f) for s in SCALES for c in COLOURS for f in SHAPES]
    figures.sort(key=lambda figure: _place(name, figure.text))
    kinds = ("texts", "pictures", "both") if form == "mixed" else (form,)
    chosen = [figure.item(kinds[k % len(kinds)]) for k, figure in enumerate(figures[:size])]
    if form == "texts" and size > len(ODD_TEXTS):
        chosen[-len(ODD_TEXTS) :] = [Item(text=text) for text in ODD_TEXTS]
    return CheckList(name, figures[0].item(asked), tuple(sorted(chosen, key=content_place(name))))


def content_place(name: str) -> Callable[[Item], bytes]:
    """A key that orders items by their content, in another order for each name."""
    return lambda item: _place(name, content_hash(item))


def _place(*words: str) -> bytes:
    """Orders as if at random, and the same way in every version of Python."""
    return hashlib.sha256("\0".join(words).encode()).digest()


def lists_hash(lists: list[CheckList]) -> str:
    """Hash of what is asked; other lists have other scores."""
    digest = hashlib.sha256()
    for one in lists:
        for item in (one.query, *one.candidates):
            digest.update(bytes.fromhex(content_hash(item)))
    return digest.hexdigest()
