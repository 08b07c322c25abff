"""Icon sets as the package has them: which may be used, and the drawings that they hold."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrv_r1.types import RetrvError

PACKAGE, VERSION = "@iconify/json", "2.2.535"
ALLOWED = frozenset(
    (
        *("MIT", "Apache-2.0", "ISC", "BSD-3-Clause", "Unlicense"),
        *("CC0-1.0", "CC-BY-3.0", "CC-BY-4.0"),
        "OFL-1.1",  # its copyleft is for fonts; a picture made with a font is not bound by it
    )
)
"""SPDX names of the licences whose sets are used."""
_BRANDS = frozenset(("Logos", "Programming"))
_KEPT = frozenset(("codicon",))  # an editor's controls, though listed under programming
LEFT_OUT: Mapping[str, str] = {
    "academicons": "brands",
    "devicon-line": "brands",
    "devicon-original": "brands",
    "fa-brands": "brands",
    "fa6-brands": "brands",
    "cif": "names are country codes",
    "circle-flags": "names are country codes",
    "flag": "names are country codes",
    "flagpack": "names are country codes",
    "nrk": "names are not English",
    "svg-spinners": "animations",
    "line-md": "animations",
}
"""Sets that their licence allows and that are not used, with the reason."""
_MOVING = re.compile(r"<(animate|set)\b")


@dataclass(frozen=True)
class Drawing:
    """An icon of a set.

    Args:
        name: name in the set.
        svg: whole document; `currentColor` is still in it.
        group: category in the set, or empty.
    """

    name: str
    svg: str
    group: str = ""


@dataclass(frozen=True)
class IconSet:
    """A set that is used.

    Args:
        prefix: its name.
        info: author, licence, palette as the package states them.
        drawings: icons without the hidden ones, by name.
        aliases: other names of drawings: alias → name.
        suffixes, prefixes: words of its styles, as the set declares them: `outline-rounded`.
        dropped: number of icons that are hidden or move.
    """

    prefix: str
    info: Mapping[str, Any]
    drawings: Mapping[str, Drawing]
    aliases: Mapping[str, str]
    suffixes: tuple[str, ...]
    prefixes: tuple[str, ...]
    dropped: int


def reason_against(prefix: str, info: Mapping[str, Any]) -> str:
    """Why a set is not used; empty if it is."""
    spdx = info.get("license", {}).get("spdx", "")
    if spdx not in ALLOWED:
        return f"licence {spdx or 'unknown'}"
    if info.get("category") in _BRANDS and prefix not in _KEPT:
        return "brands"
    return LEFT_OUT.get(prefix, "")


def read_sets(tarball: Path) -> Iterator[Mapping[str, Any]]:
    """Contents of each set of the package, one at a time, in the order of the tarball.

    Raises:
        RetrvError: the file is damaged.
    """
    try:
        with tarfile.open(tarball) as tar:
            for member in tar:
                parent, name = Path(member.name).parent.name, Path(member.name).name
                if parent == "json" and name.endswith(".json"):
                    handle = tar.extractfile(member)
                    if handle is not None:
                        yield json.load(handle)
    except (tarfile.TarError, json.JSONDecodeError, EOFError, OSError) as error:
        raise RetrvError(f"{tarball.name} is damaged ({error}); delete it, build again") from error


def icon_set(data: Mapping[str, Any]) -> IconSet:
    """The set that one file of the package holds."""
    groups: dict[str, str] = {}
    for group, names in data.get("categories", {}).items():
        for name in names:
            groups.setdefault(name, group)
    drawings, dropped = {}, 0
    for name, icon in data["icons"].items():
        if icon.get("hidden") or _MOVING.search(icon["body"]):
            dropped += 1
            continue
        drawings[name] = Drawing(name, _svg(_sized(data, icon)), groups.get(name, ""))
    aliases = {}
    for name, alias in data.get("aliases", {}).items():
        resolved = _resolve(data, name)
        if resolved is None or resolved.get("hidden"):
            dropped += 1
        elif any(resolved.get(key) for key in ("hFlip", "vFlip", "rotate")):
            if not _MOVING.search(resolved["body"]):
                group = groups.get(name, groups.get(alias["parent"], ""))
                drawings[name] = Drawing(name, _svg(_sized(data, resolved)), group)
        elif resolved["root"] in drawings:
            aliases[name] = resolved["root"]
    return IconSet(
        prefix=data["prefix"],
        info=data["info"],
        drawings=drawings,
        aliases=aliases,
        suffixes=tuple(word for word in data.get("suffixes", {}) if word),
        prefixes=tuple(word for word in data.get("prefixes", {}) if word),
        dropped=dropped,
    )


def _resolve(data: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """An alias as an icon, its turns summed up over its parents; None where the chain breaks."""
    chain: list[Mapping[str, Any]] = []
    aliases = data.get("aliases", {})
    while name in aliases and len(chain) < 8:
        chain.append(aliases[name])
        name = aliases[name]["parent"]
    if name not in data["icons"]:
        return None
    icon = dict(data["icons"][name], root=name)
    for alias in reversed(chain):
        for key, value in alias.items():
            if key == "rotate":
                icon[key] = (icon.get(key, 0) + value) % 4
            elif key in ("hFlip", "vFlip"):
                icon[key] = icon.get(key, False) != value
            elif key != "parent":
                icon[key] = value
    return icon


def _sized(data: Mapping[str, Any], icon: Mapping[str, Any]) -> dict[str, Any]:
    """An icon with its own or its set's view box."""
    sides = {key: data.get(key, 16) for key in ("width", "height")}
    return {**sides, **{key: data.get(key, 0) for key in ("left", "top")}, **icon}


def _svg(icon: Mapping[str, Any]) -> str:
    """The document of an icon; a turned one is turned about the middle of its box."""
    left, top, width, height = (icon[key] for key in ("left", "top", "width", "height"))
    turns = []
    middle = f"{left + width / 2} {top + height / 2}"
    if icon.get("rotate"):
        turns.append(f"rotate({90 * icon['rotate']} {middle})")
    if icon.get("hFlip") or icon.get("vFlip"):
        x, y = (-1 if icon.get(key) else 1 for key in ("hFlip", "vFlip"))
        shift = f"{(2 * left + width) * (x < 0)} {(2 * top + height) * (y < 0)}"
        turns.append(f"translate({shift}) scale({x} {y})")
    body = icon["body"]
    if turns:
        body = f'<g transform="{" ".join(turns)}">{body}</g>'
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">{body}</svg>'
    )
