"""The manifest of an icon corpus: what it was asked for, made of, and holds."""

from __future__ import annotations

import importlib.metadata
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retrv_r1.data.icons.choose import DRAWINGS_PER_CONCEPT, STYLES_PER_DRAWING, Choice
from retrv_r1.data.icons.concepts import TEST_SHARE, VAL_SHARE
from retrv_r1.data.icons.copies import ANY_NAME, RESEMBLES, SAME_NAME, SIMPLE
from retrv_r1.data.icons.corpus import MANIFEST, IconRow
from retrv_r1.data.icons.families import HELD_OUT
from retrv_r1.data.icons.packages import PACKAGES, sha256_of, tarball
from retrv_r1.data.icons.render import RENDER_VERSION, renderer_version
from retrv_r1.data.icons.splits import Copies

BUILD_VERSION = 1  # raise it when the same packages give other files


def build_request(out: Path, seed: int, size: int, limit: int | None) -> dict[str, Any]:
    """Everything that the result depends on."""
    return {
        "build": BUILD_VERSION,
        "render": RENDER_VERSION,
        "seed": seed,
        "size": size,
        "limit": limit,
        "packages": {
            package: {"version": version, "sha256": sha256_of(tarball(package, out))}
            for package, version in PACKAGES.items()
        },
        "tools": {name: importlib.metadata.version(name) for name in ("numpy", "pillow")}
        | {"resvg-py": renderer_version()},
        "choice": {
            "styles of a drawing": STYLES_PER_DRAWING,
            "drawings of a concept in a set": DRAWINGS_PER_CONCEPT,
            "test concepts": TEST_SHARE,
            "val concepts": VAL_SHARE,
            "held-out hands": dict(HELD_OUT),
            "copies": {
                "same name": SAME_NAME,
                "any name": ANY_NAME,
                "simple": SIMPLE,
                "sets": RESEMBLES,
            },
        },
    }


def read_if_complete(out: Path, request: Mapping[str, Any]) -> dict[str, Any] | None:
    """Manifest of a folder that holds what is asked for; None if it must be built."""
    try:
        data: dict[str, Any] = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        whole = all(
            (out / name).stat().st_size == row["bytes"] for name, row in data["files"].items()
        )
    except (ValueError, KeyError, TypeError, FileNotFoundError):  # not built, or damaged
        return None
    return data if whole and data.get("request") == request else None


def describe(
    request: Mapping[str, Any], choice: Choice, rows: Sequence[IconRow], copies: Copies
) -> dict[str, Any]:
    """Contents of the manifest, without the hashes of the files."""
    by_split: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        by_split[row.set][row.split] += 1
    return {
        "request": dict(request),
        "pictures": _counts(rows),
        "concepts": {
            "all": len({row.code for row in rows}),
            **{
                split: len({row.code for row in rows if row.concept_split == split})
                for split in ("train", "val", "test")
            },
        },
        "dropped": {
            reason: {"all": sum(sets.values()), "sets": dict(sorted(sets.items()))}
            for reason, sets in choice.dropped.items()
        },
        "copies": {
            "sets": {p: dict(of) for p, of in copies.of.items()},
            "whole": dict(copies.whole),
        },
        "sets": {
            prefix: _describe_set(prefix, choice, by_split[prefix])
            for prefix in sorted(choice.infos)
        },
    }


def _counts(rows: Sequence[IconRow]) -> dict[str, Any]:
    return {
        "all": len(rows),
        "colour": sum(row.colour for row in rows),
        "split": dict(sorted(Counter(row.split for row in rows).items())),
        "why": dict(sorted(Counter(" and ".join(row.why) for row in rows if row.why).items())),
        "families": dict(sorted(Counter(row.family for row in rows).items())),
    }


def _describe_set(prefix: str, choice: Choice, splits: Mapping[str, int]) -> dict[str, Any]:
    info = choice.infos[prefix]
    licence, author = info.get("license", {}), info.get("author", {})
    described = {
        "name": info.get("name", prefix),
        "author": author.get("name", ""),
        "url": author.get("url", ""),
        "licence": licence.get("spdx", ""),
        "licence url": licence.get("url", ""),
        "version": info.get("version", ""),
    }
    if prefix in choice.reasons:
        return described | {"left out": choice.reasons[prefix]}
    return described | {"pictures": dict(sorted(splits.items()))}


def files_of(out: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each file of the corpus, by its path."""
    listed = sorted(
        path
        for path in out.rglob("*")
        if path.is_file()
        and not path.relative_to(out).parts[0].startswith(".")
        and path.name != MANIFEST
    )
    return {
        path.relative_to(out).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in listed
    }
