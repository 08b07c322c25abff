"""The picture store: which rendered icons are kept, and the arrays that hold them."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from retrv_r1.data.icons.choose import Icon
from retrv_r1.data.icons.copies import maps_of, variation
from retrv_r1.data.icons.corpus import Split
from retrv_r1.data.icons.render import Shard, pixels_in_order
from retrv_r1.files import replacing

PICTURE_ARRAY, GLYPH_ARRAY = "pictures.npy", "glyphs.npy"


@dataclass(frozen=True)
class Kept:
    """A rendered icon of the corpus.

    Args:
        icon: the icon.
        glyph: whether it has one colour.
        maps: what it looks like, see `copies.maps_of`.
        variation: how much there is to draw, see `copies.variation`; 0 for colours.
    """

    icon: Icon
    glyph: bool
    maps: Mapping[str, np.ndarray]
    variation: float


@dataclass
class Survey:
    """What rendering gave.

    Args:
        kept: icons of the corpus: those with colours, then the glyphs, each in the shards' order.
        twins: concept keys of dropped icons with the same pixels, by concept key of the kept one.
        dropped: numbers of dropped icons by reason and set.
    """

    kept: list[Kept] = field(default_factory=list)
    twins: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    dropped: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))


def survey(
    shards: Sequence[Shard], held: Mapping[str, Split], progress: Callable[[int], None]
) -> Survey:
    """Looks at all rendered icons, and drops the empty ones and the twins inside a set.

    Of twins a held-out concept is kept, so that training does not show it under another name;
    then the shortest name.

    Args:
        held: split of held-out concepts.
        progress: called with the number of icons that were looked at.
    """
    result = Survey()
    found: dict[tuple[str, str], Kept] = {}
    for icon, pixels in pixels_in_order(shards):
        progress(1)
        if pixels is None:
            result.dropped["empty"][icon.set] += 1
            continue
        key = icon.set, hashlib.sha256(pixels.tobytes()).hexdigest()
        other = found.get(key)
        if other is not None:
            result.dropped["same pixels in the set"][icon.set] += 1
            if _rank(icon, held) >= _rank(other.icon, held):
                _twin(result, other.icon, icon, held)
                continue
            _twin(result, icon, other.icon, held)
        glyph = pixels.ndim == 2
        maps = maps_of(pixels) if other is None else other.maps
        found[key] = Kept(icon, glyph, maps, variation(pixels) if glyph else 0.0)
    listed = sorted(found.values(), key=lambda k: (k.glyph, k.icon.set, k.icon.drawing.name))
    result.kept = listed
    return result


def _rank(icon: Icon, held: Mapping[str, Split]) -> tuple[int, int, str]:
    name = icon.drawing.name
    return ("test", "val", "train").index(held.get(icon.code, "train")), len(name), name


def _twin(result: Survey, kept: Icon, dropped: Icon, held: Mapping[str, Split]) -> None:
    """Notes the name of a dropped twin, if it may be said wherever the kept one is shown."""
    if kept.code != dropped.code and held.get(kept.code) == held.get(dropped.code):
        result.twins[kept.code].add(dropped.code)


def write_arrays(out: Path, shards: Sequence[Shard], kept: Sequence[Kept], size: int) -> None:
    """Writes `pictures.npy` and `glyphs.npy`, rows in the order of `kept`."""
    colour = sum(not k.glyph for k in kept)
    row_of = {(k.icon.set, k.icon.drawing.name): row for row, k in enumerate(kept)}
    with replacing(out / PICTURE_ARRAY) as first, replacing(out / GLYPH_ARRAY) as second:
        pictures = _mapped(first, (colour, size, size, 4))
        glyphs = _mapped(second, (len(kept) - colour, size, size))
        for icon, pixels in pixels_in_order(shards):
            row = row_of.get((icon.set, icon.drawing.name))
            if row is None or pixels is None:
                continue
            if row < colour:
                pictures[row] = pixels
            else:
                glyphs[row - colour] = pixels
        for array in (pictures, glyphs):
            if isinstance(array, np.memmap):
                array.flush()


def _mapped(file: IO[bytes], shape: tuple[int, ...]) -> np.ndarray:
    """Makes a file an array of bytes of this shape, and maps it."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    file.flush()
    if 0 in shape:  # nothing to map
        return np.zeros(shape, np.uint8)
    return np.memmap(file, np.uint8, "r+", offset=file.tell(), shape=shape)
