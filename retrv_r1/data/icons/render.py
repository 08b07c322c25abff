"""Renders icons to pixels, shard by shard, so that a killed build goes on where it was."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from retrv_kernels.extras import install_command
from retrv_r1.data.icons.choose import Icon
from retrv_r1.data.icons.concepts import share
from retrv_r1.files import replacing
from retrv_r1.types import RetrvError

RENDER_VERSION = 1  # raise it when the same SVG gives other pixels
SHARD = 256
_BLACK = 24  # of 255; a picture whose every visible pixel is darker has no colours of its own
_VISIBLE = 40  # of 255; below this alpha a colour is a rounding error
_EMPTY, GLYPH, COLOUR = 0, 1, 2


@dataclass(frozen=True)
class Shard:
    """Icons of one set that are rendered together, and the file of their pixels."""

    icons: tuple[Icon, ...]
    path: Path


@dataclass(frozen=True)
class Rendered:
    """Pixels of a shard.

    Args:
        kind: `uint8 [n]`: nothing drawn, `GLYPH` or `COLOUR`.
        glyphs: alpha of the glyphs, `uint8 [g, size, size]`, in order.
        pictures: RGBA of the others, `uint8 [c, size, size, 4]`, in order.
    """

    kind: np.ndarray
    glyphs: np.ndarray
    pictures: np.ndarray


def renderer_version() -> str:
    """Version of the renderer.

    Raises:
        RetrvError: resvg-py is not installed.
    """
    try:
        import resvg_py
    except ImportError as error:
        message = f"rendering needs resvg-py: {install_command('data')}"
        raise RetrvError(message) from error
    return str(resvg_py.__version__)


def render(svg: str, size: int) -> np.ndarray:
    """Pixels of a document, `uint8 [size, size, 4]`, straight alpha, its view box centred.

    Raises:
        ValueError: the SVG is invalid.
    """
    import resvg_py

    width, height = _box(svg)
    png = resvg_py.svg_to_bytes(
        svg_string=svg.replace("currentColor", "#000"),
        skip_system_fonts=True,
        width=size if width >= height else None,
        height=None if width >= height else size,
    )
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    if image.size != (size, size):
        square = Image.new("RGBA", (size, size), (0, 0, 0, 0))
        square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
        image = square
    pixels = np.array(image)
    pixels[pixels[..., 3] == 0] = 0
    return pixels


def _box(svg: str) -> tuple[float, float]:
    """Width and height of a document's view box."""
    _, _, rest = svg.partition('viewBox="')
    numbers = rest.partition('"')[0].split()
    return float(numbers[2]), float(numbers[3])


def kind_of(pixels: np.ndarray) -> int:
    """Whether pixels are empty, a glyph in black, or a picture with colours of its own."""
    alpha = pixels[..., 3]
    if not (alpha > _VISIBLE).any():
        return _EMPTY
    return GLYPH if pixels[alpha > _VISIBLE][:, :3].max() < _BLACK else COLOUR


def shards_of(
    icons: Sequence[Icon], folder: Path, size: int, limit: int | None = None
) -> list[Shard]:
    """Icons, sorted by set, in shards; a file's name is a hash of what it is made of.

    A set's icons are in a random order, and the sets take turns. So a few shards are a fair sample,
    and a corpus with a limit shares its shards with one that has none.

    Args:
        limit: number of icons of each set to keep; all when None.

    Raises:
        RetrvError: resvg-py is not installed.
    """
    renderer = renderer_version()
    shards: list[tuple[int, Shard]] = []
    for prefix, of_set in groupby(icons, key=lambda icon: icon.set):
        listed = sorted(of_set, key=lambda icon: share(0, "shard", prefix, icon.drawing.name))
        for start in range(0, len(listed[:limit]), SHARD):
            part = tuple(listed[:limit][start : start + SHARD])
            digest = hashlib.sha256()
            for word in (RENDER_VERSION, size, renderer):
                digest.update(f"{word}\n".encode())
            for icon in part:
                digest.update(icon.drawing.svg.encode() + b"\n")
            path = folder / f"{prefix}-{digest.hexdigest()[:16]}.npz"
            shards.append((start, Shard(part, path)))
    return [shard for _, shard in sorted(shards, key=lambda pair: pair[0])]


def render_shards(
    shards: Sequence[Shard], size: int, *, processes: int, progress: Callable[[int], None]
) -> None:
    """Renders the shards whose files are not there.

    Args:
        processes: number of processes, with a lower priority than this one.
        progress: called with the number of icons that are done.
    """
    todo = [shard for shard in shards if not shard.path.exists()]
    for shard in shards:
        if shard.path.exists():
            progress(len(shard.icons))
    documents = [[icon.drawing.svg for icon in shard.icons] for shard in todo]
    paths = [shard.path for shard in todo]
    sizes = [size] * len(todo)
    if processes == 1:
        for job in zip(documents, paths, sizes, strict=True):
            progress(_render_shard(*job))
        return
    # Spawned: the progress bar's thread makes forking unsafe.
    with ProcessPoolExecutor(processes, get_context("spawn"), _be_nice) as pool:
        for done in pool.map(_render_shard, documents, paths, sizes):
            progress(done)


def _be_nice() -> None:
    os.nice(5)


def _render_shard(documents: Sequence[str], path: Path, size: int) -> int:
    """Renders one shard to its file; returns the number of its icons."""
    kinds = np.zeros(len(documents), np.uint8)
    glyphs, pictures = [], []
    for i, svg in enumerate(documents):
        try:
            pixels = render(svg, size)
        except ValueError:
            continue
        kinds[i] = kind_of(pixels)
        if kinds[i] == GLYPH:
            glyphs.append(pixels[..., 3])
        elif kinds[i] == COLOUR:
            pictures.append(pixels)
    with replacing(path) as file:
        np.savez(
            file,
            kind=kinds,
            glyphs=np.array(glyphs, np.uint8).reshape(-1, size, size),
            pictures=np.array(pictures, np.uint8).reshape(-1, size, size, 4),
        )
    return len(documents)


def read_shard(shard: Shard) -> Rendered:
    """Pixels of a rendered shard.

    Raises:
        RetrvError: its file is damaged.
    """
    try:
        with np.load(shard.path) as file:
            return Rendered(file["kind"], file["glyphs"], file["pictures"])
    except (OSError, ValueError, KeyError) as error:
        raise RetrvError(f"{shard.path} is damaged ({error}); delete it, build again") from error


def pixels_in_order(shards: Sequence[Shard]) -> Iterator[tuple[Icon, np.ndarray | None]]:
    """Each icon with its pixels, `[size, size]` for a glyph; None where nothing is drawn."""
    for shard in shards:
        rendered = read_shard(shard)
        glyphs, pictures = iter(rendered.glyphs), iter(rendered.pictures)
        for icon, kind in zip(shard.icons, rendered.kind, strict=True):
            if kind == _EMPTY:
                yield icon, None
            else:
                yield icon, next(glyphs if kind == GLYPH else pictures)
