"""Renders SVG to square RGBA pictures, in a cache, so that a killed build can be continued."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from retrv_kernels.extras import install_command
from retrv_r1.data.pictographs.sources import Drawings
from retrv_r1.types import RetrvError

RENDER_VERSION = 1  # raise it when the same SVG gives other pixels
_MARGIN = 0.04  # margin around the drawing, as a share of its longer side
_ALPHA = 8  # of 255; pixels that are fainter do not belong to the drawing


def render(svg: str, size: int) -> Image.Image:
    """Renders at twice `size`, crops to the drawing, pads to a square and reduces.

    Returns:
        RGBA image of `size` × `size` pixels; pixels outside the drawing are fully transparent.

    Raises:
        ValueError: the SVG is invalid or draws nothing.
    """
    import resvg_py

    side = 2 * size
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side, skip_system_fonts=True)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    box = image.getchannel("A").point(lambda a: 255 * (a > _ALPHA)).getbbox()
    if box is None:
        raise ValueError("nothing is drawn")
    image = image.crop(box)
    edge = max(image.size) + 2 * round(_MARGIN * max(image.size))
    square = Image.new("RGBA", (edge, edge), (0, 0, 0, 0))
    square.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
    # Premultiplied; otherwise transparent pixels would darken the edges.
    pixels = np.asarray(
        square.convert("RGBa").resize((size, size), Image.Resampling.LANCZOS).convert("RGBA")
    ).copy()
    pixels[pixels[..., 3] == 0] = 0
    return Image.fromarray(pixels, "RGBA")


def _write(path: Path, image: Image.Image) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    image.save(temporary, format="PNG", compress_level=6)
    os.replace(temporary, path)


def _render_some(jobs: Sequence[tuple[str, str]], size: int) -> list[str]:
    """Renders (path, svg) pairs; returns the paths whose SVG is invalid or empty."""
    failed = []
    for path, svg in jobs:
        try:
            _write(Path(path), render(svg, size))
        except ValueError:
            failed.append(path)
    return failed


def cache_folder(cache: Path, drawings: Drawings, size: int) -> Path:
    """Folder of a style's pictures; its name is a hash of drawings, size and renderer."""
    import resvg_py

    digest = hashlib.sha256()
    for part in (RENDER_VERSION, size, resvg_py.__version__, Image.__version__):
        digest.update(f"{part}\n".encode())
    for code, svg in drawings.svg.items():
        digest.update(f"{code} {svg}\n".encode())
    return cache / "pictures" / f"{drawings.style.name}-{digest.hexdigest()[:16]}"


def render_all(
    drawings: Iterable[Drawings],
    cache: Path,
    size: int,
    *,
    processes: int = 2,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Mapping[str, Path]]:
    """Renders the pictures that the cache lacks.

    Args:
        progress: function of (name of the style, pictures done, pictures in all).

    Returns:
        Path of each PNG in the cache, by name of the style and code, without empty drawings.

    Raises:
        RetrvError: resvg-py is not installed.
    """
    try:
        import resvg_py  # noqa: F401
    except ImportError as error:
        message = f"rendering needs resvg-py: {install_command('data')}"
        raise RetrvError(message) from error
    result: dict[str, Mapping[str, Path]] = {}
    # Spawned: the progress bar's thread makes forking unsafe.
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        run = map if processes == 1 else pool.map
        for style in drawings:
            result[style.style.name] = _render_style(style, cache, size, run, progress)
    return result


def _render_style(
    drawings: Drawings,
    cache: Path,
    size: int,
    run: Callable[..., Iterable[list[str]]],
    progress: Callable[[str, int, int], None] | None,
) -> dict[str, Path]:
    folder = cache_folder(cache, drawings, size)
    folder.mkdir(parents=True, exist_ok=True)
    empty = folder / "empty.txt"
    have = {entry.name for entry in os.scandir(folder)}
    skip = set(empty.read_text().split()) if empty.exists() else set()
    paths = {code: folder / f"{code}.png" for code in drawings.svg}
    todo = [
        (str(path), drawings.svg[code])
        for code, path in paths.items()
        if path.name not in have and code not in skip
    ]
    chunks = [todo[i : i + 32] for i in range(0, len(todo), 32)]
    done = len(paths) - len(todo)
    if progress:
        progress(drawings.style.name, done, len(paths))
    results = run(_render_some, chunks, [size] * len(chunks))
    for chunk, failed in zip(chunks, results, strict=True):
        done += len(chunk)
        skip |= {Path(path).stem for path in failed}
        if progress:
            progress(drawings.style.name, done, len(paths))
    if skip:
        empty.write_text("\n".join(sorted(skip)) + "\n")
    return {code: path for code, path in paths.items() if code not in skip}
