"""The build: fetch, render, split, draft queries, write, check."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from retrv_r1.data.pictographs import lexicon
from retrv_r1.data.pictographs.catalog import Catalog, near_concepts
from retrv_r1.data.pictographs.cells import build_cell
from retrv_r1.data.pictographs.changes import changes
from retrv_r1.data.pictographs.check import check
from retrv_r1.data.pictographs.concepts import Concept, concept_table
from retrv_r1.data.pictographs.manifest import (
    Manifest,
    build_request,
    read_if_complete,
    write_manifest,
)
from retrv_r1.data.pictographs.npm import fetch_sets
from retrv_r1.data.pictographs.phrases import SHAPES, dataset, family
from retrv_r1.data.pictographs.render import render_all
from retrv_r1.data.pictographs.scenes import scenes
from retrv_r1.data.pictographs.sources import Drawings, collect_drawings
from retrv_r1.data.pictographs.splits import Splits, hashed, make_splits
from retrv_r1.data.pictographs.store import picture_rows, place_pictures, write_pixels
from retrv_r1.data.pictographs.styles import BY_NAME, STYLES, Roles, roles_of, styles_to_build
from retrv_r1.data.pictographs.write import (
    attribution,
    union_stem,
    write_cell,
    write_instructions,
    write_jsonl,
    write_metadata,
    write_pool,
    write_text,
)
from retrv_r1.types import RetrvError


def build(
    out: Path,
    *,
    styles: Sequence[str] | None = None,
    seed: int = 0,
    size: int = 64,
    download: bool = True,
    limit_concepts: int | None = None,
    processes: int = 2,
    console: Console | None = None,
) -> Manifest:
    """Builds the pictograph set in M-BEIR's layout under `out`.

    It may be killed and called again: rendered pictures stay in `out/.cache`, every file is written
    in one step, `manifest.json` last. A complete directory is left as it is.

    Args:
        styles: names of picture styles; None for all that are available.
        seed: seed of the choice of what is held out and what is asked.
        size: side of a picture in pixels.
        download: fetch icon sets with `npm pack` where the cache lacks them.
        limit_concepts: number of base concepts to keep, with all their variants; for trials.
        processes: number of processes that render.
        console: where progress is shown; stderr when None.

    Raises:
        RetrvError: a Python package of the data extra is missing, or a source is damaged.
        ValueError: an unknown style, or a limit or size that is too small.
    """
    console = console or Console(stderr=True)
    names = _checked_styles(styles, size, limit_concepts)
    cache = out / ".cache"
    sets, missing = fetch_sets(names, cache / "npm", download=download, say=console.print)
    if styles is None:
        names = styles_to_build(names, sets)
    request = build_request(names, missing, seed, size, limit_concepts)
    if done := read_if_complete(out, request):
        return done
    table = concept_table({}, {}, {})
    wanted = _chosen_codes(table, limit_concepts, seed)
    collected = collect_drawings(names, table, sets, missing, wanted)
    if not collected.drawings:
        raise RetrvError(
            f"none of the styles {', '.join(names)} can be had: install npm and allow downloads, "
            "or name a style of a Python package (openmoji, noto-mono)"
        )
    (out / "manifest.json").unlink(missing_ok=True)
    for package, effect in _missing_packages().items():
        console.print(f"{package} is not installed (apt install {package}): {effect}")
    described = concept_table(lexicon.cldr_keywords(), collected.groups, lexicon.cldr_subgroups())
    concepts = {code: concept for code, concept in described.items() if code in wanted}
    paths = _render(collected.drawings, cache, size, processes, console)
    roles = roles_of([style for style, codes in paths.items() if codes])
    splits = make_splits(concepts, paths[roles.reference], seed=seed)
    place_pictures(paths, out)
    pictures = picture_rows(
        paths, write_pixels(paths, size, out / "pictures.npy"), concepts, splits
    )
    drawn = {
        style: frozenset(p.code for p in pictures if p.style == style and not p.duplicate_of)
        for style in paths
    }
    near, glosses = near_concepts(concepts, seed), lexicon.wordnet_glosses(concepts)
    catalog = Catalog(concepts, drawn, splits, roles, near, glosses, seed)
    counts = _write_cells(out, catalog, console)
    write_metadata(out, catalog, pictures)
    _write_held_out(out, splits, roles)
    write_text(
        out / "ATTRIBUTION.md", attribution(collected.drawings, lexicon.cldr_version(), glosses)
    )
    return write_manifest(out, request, catalog, collected, counts, check(out), pictures)


def _render(
    drawings: Sequence[Drawings], cache: Path, size: int, processes: int, console: Console
) -> dict[str, Mapping[str, Path]]:
    """Renders all styles, each with a progress bar."""
    with _progress(console) as progress:
        bars = {
            d.style.name: progress.add_task(f"render {d.style.name}", total=len(d.svg))
            for d in drawings
        }

        def show(style: str, done: int, total: int) -> None:
            progress.update(bars[style], completed=done, total=total)

        paths = render_all(drawings, cache, size, processes=processes, progress=show)
    for d in drawings:
        if empty := len(d.svg) - len(paths[d.style.name]):
            console.print(f"{empty} drawings of {d.style.name} are empty and left out")
    return paths


def _checked_styles(styles: Sequence[str] | None, size: int, limit: int | None) -> list[str]:
    unknown = set(styles or ()) - BY_NAME.keys()
    if unknown:
        raise ValueError(f"unknown styles {sorted(unknown)}; there are {', '.join(BY_NAME)}")
    if size < 8 or (limit is not None and limit < 20):
        raise ValueError("size must be at least 8 and limit_concepts at least 20")
    return [s.name for s in STYLES if styles is None or s.name in styles]


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True)


def _missing_packages() -> dict[str, str]:
    absent = {}
    if not lexicon.cldr_version():
        absent["unicode-cldr-core"] = "keywords come from the aliases of the emoji package"
    if not (lexicon.WORDNET / "data.noun").exists():
        absent["wordnet-base"] = "no glosses"
    return absent


def _chosen_codes(concepts: Mapping[str, Concept], limit: int | None, seed: int) -> frozenset[str]:
    """Codes of ``limit`` bases, all when None, with all their variants."""
    bases = sorted({c.base for c in concepts.values()}, key=lambda b: hashed(seed, "limit", b))
    kept = set(bases[:limit])
    return frozenset(code for code, c in concepts.items() if c.base in kept)


def _write_cells(out: Path, catalog: Catalog, console: Console) -> dict[str, Any]:
    """Writes every cell of every scene; returns the counts."""
    for folder in ("query", "cand_pool", "qrels", "instructions"):  # from an earlier build
        shutil.rmtree(out / folder, ignore_errors=True)
    known_changes = changes(catalog.concepts)
    counts: dict[str, Any] = {}
    datasets: dict[str, int] = {}
    first: dict[str, int] = {}
    metadata = []
    found = scenes(catalog)
    with _progress(console) as progress:
        bar = progress.add_task("write cells", total=len(found) * len(SHAPES))
        for scene in found:
            union: dict[str, None] = {}
            for shape in SHAPES:
                cell = build_cell(catalog, scene, shape.key, known_changes)
                progress.advance(bar)
                number, name = dataset(shape, scene.name)
                if not cell.drafts:
                    continue
                datasets[name] = number
                metadata += write_cell(out, catalog, cell, first.get(name, 1))
                first[name] = first.get(name, 1) + len(cell.drafts)
                union.update(dict.fromkeys(cell.pool))
                counts.setdefault(name, {})[scene.split] = {
                    "queries": len(cell.drafts),
                    "pool": len(cell.pool),
                    "positives": sum(len(d.positives) for d in cell.drafts),
                }
            pool = out / "cand_pool" / "global" / f"{union_stem(scene.name)}_cand_pool.jsonl"
            write_pool(pool, catalog, union)
            counts.setdefault("union", {})[family(scene.name) + "/" + scene.split] = {
                "pool": len(union)
            }
    write_jsonl(out / "query_metadata.jsonl", metadata)
    write_instructions(out, datasets)
    return counts


def _write_held_out(out: Path, splits: Splits, roles: Roles) -> None:
    held = {
        "train_styles": list(roles.train),
        "unseen_bases": sorted(splits.unseen),
        "combinations": sorted(splits.held_combinations),
        "translations": sorted([*pair, side] for pair, side in splits.translations.items()),
        "texts": sorted(splits.banned),
        "translation_texts": sorted(splits.translation_texts),
    }
    write_text(out / "held_out.json", json.dumps(held, ensure_ascii=False, indent=1) + "\n")
