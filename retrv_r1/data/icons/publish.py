"""Writes cells in M-BEIR's layout, with their metadata and the pictures that a test reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from retrv_r1.data.icons.concepts import share
from retrv_r1.data.icons.corpus import IconCorpus, IconRow
from retrv_r1.data.icons.detail import Twins
from retrv_r1.data.icons.drafts import CellData, Draft, did, generator
from retrv_r1.data.icons.phrases import DATASETS
from retrv_r1.data.icons.store import GLYPH_ARRAY, PICTURE_ARRAY
from retrv_r1.data.icons.terms import Terms
from retrv_r1.files import replacing, write_whole

COLOURED_SHARE = 0.15
COLOURS: tuple[tuple[int, int, int], ...] = (
    (37, 99, 235), (220, 38, 38), (22, 163, 74), (234, 88, 12), (124, 58, 237), (71, 85, 105),
)  # fmt: skip
"""Colours of a share of the glyphs of tests; the others are black."""
_FOLDERS = ("query", "cand_pool", "qrels", "instructions", "candidates")


def publish(
    out: Path,
    corpus: IconCorpus,
    terms: Sequence[Terms],
    cells: Iterable[CellData],
    seed: int,
) -> dict[str, Any]:
    """Writes cells, terms, metadata and pictures; returns counts by data set and split."""
    for folder in _FOLDERS:  # from an earlier build
        shutil.rmtree(out / folder, ignore_errors=True)
    counts: dict[str, Any] = {}
    queries: list[Mapping[str, Any]] = []
    shown: dict[int, IconRow] = {}
    texts: dict[str, tuple[str, str]] = {}
    seen_by_tests: dict[int, IconRow] = {}
    for cell in cells:
        queries += _write_cell(out, cell, seed)
        pictures = {row.row: row for row in cell.pictures}
        shown |= pictures
        texts |= cell.texts
        if cell.split != "train":
            asked = {d.image.row: d.image for d in cell.drafts if d.image is not None}
            seen_by_tests |= pictures | asked
        counts.setdefault(cell.dataset.name, {})[cell.split] = {
            "queries": len(cell.drafts),
            "pool": len(pictures) + len(cell.texts),
            "positives": sum(len(draft.positives) for draft in cell.drafts),
        }
    _write_lines(out / "query_metadata.jsonl", queries)
    _write_lines(out / "metadata.jsonl", _candidates(corpus, shown, texts))
    _write_lines(out / "terms.jsonl", map(asdict, terms))
    _write_instructions(out, [name for name in DATASETS if DATASETS[name].name in counts])
    write_pictures(out, corpus, seen_by_tests.values(), seed)
    return counts


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write_cell(out: Path, cell: CellData, seed: int) -> list[Mapping[str, Any]]:
    """Writes queries, qrels, pool and lists of a cell; returns the queries' metadata."""
    data, split = cell.dataset, cell.split
    order = generator(seed, "order", data.name, split).permutation(len(cell.drafts)).tolist()
    # Splits of one data set share its number, and every qid is of one query.
    first = {"train": 1, "val": 1_000_001, "test": 2_000_001}[split]
    numbered = [(f"{data.number}:{first + n}", cell.drafts[i]) for n, i in enumerate(order)]
    stem = f"mbeir_{data.name}_{split}"
    _write_lines(
        out / "query" / split / f"{stem}.jsonl", (_query(qid, d, cell) for qid, d in numbered)
    )
    lines = (f"{qid} 0 {p} 1 {data.task}\n" for qid, d in numbered for p in d.positives)
    write_whole(out / "qrels" / split / f"{stem}_qrels.txt", "".join(lines))
    _write_lines(out / "cand_pool" / "local" / f"{stem}_cand_pool.jsonl", _pool(cell, seed))
    if any(draft.listed for draft in cell.drafts):
        runs = (
            f"{qid} Q0 {listed} {rank} {1 / rank:.6f} siblings\n"
            for qid, draft in numbered
            for rank, listed in enumerate(draft.listed, 1)
        )
        write_whole(out / "candidates" / f"{data.name}_{split}.trec", "".join(runs))
    return [_query_metadata(qid, draft, cell) for qid, draft in numbered]


def _query(qid: str, draft: Draft, cell: CellData) -> Mapping[str, Any]:
    return {
        "qid": qid,
        "query_txt": draft.text,
        "query_img_path": draft.image.img_path if draft.image else None,
        "query_modality": cell.dataset.query_modality,
        "query_src_content": None,
        "pos_cand_list": list(draft.positives),
        "neg_cand_list": list(draft.negatives),
        "task_id": cell.dataset.task,
    }


def _query_metadata(qid: str, draft: Draft, cell: CellData) -> Mapping[str, Any]:
    evaluation = cell.dataset.name.split("_")[1] if cell.split == "test" else cell.split
    return {
        "qid": qid,
        "cell": cell.dataset.name,
        "split": cell.split,
        "evaluation": evaluation,
        "kind": draft.kind,
        "target": dict(draft.target),
        "source": draft.image.name if draft.image else None,
        "style": draft.image.set if draft.image else None,
        **draft.details,
    }


def _pool(cell: CellData, seed: int) -> list[Mapping[str, Any]]:
    """Candidates of a cell in random order, so that ties favour nobody."""
    rows = [
        {"txt": None, "img_path": r.img_path, "modality": "image", "did": did(r)}
        for r in cell.pictures
    ] + [
        {"txt": text, "img_path": None, "modality": "text", "did": name}
        for name, (text, _) in cell.texts.items()
    ]  # fmt: skip
    order = generator(seed, "pool", cell.dataset.name, cell.split).permutation(len(rows))
    return [rows[i] | {"src_content": None} for i in order.tolist()]


def _candidates(
    corpus: IconCorpus, shown: Mapping[int, IconRow], texts: Mapping[str, tuple[str, str]]
) -> Iterable[Mapping[str, Any]]:
    """Metadata of candidates; fields that say nothing are left out, which saves memory."""
    twins = Twins(corpus.rows)
    for number in sorted(shown):
        row = shown[number]
        fields = {
            "did": did(row),
            "kind": "picture",
            "row": row.row,
            "style": row.set,
            "hand": row.family,
            "code": row.code,
            "name": row.name,
            "base": row.code,
            "styles": list(row.styles),
            "skin_tone": row.skin,
            "gender": row.gender,
            "group": row.group,
            "details": twins.details_of(row),
        }
        yield {key: value for key, value in fields.items() if value or key == "row"}
    for name in sorted(texts, key=lambda key: int(key.split(":")[1])):
        text, code = texts[name]
        yield {"did": name, "kind": "name", "txt": text, "code": code, "name": text, "base": code}


def _write_instructions(out: Path, names: Sequence[str]) -> None:
    header = ["query_modality", "cand_modality", "dataset_name", "dataset_id"]
    lines = ["\t".join([*header, *(f"prompt_{i}" for i in range(1, 5))])]
    for name in names:
        data = DATASETS[name]
        fields = [data.query_modality, data.cand_modality, data.name, str(data.number)]
        lines.append("\t".join([*fields, *data.prompts]))
    path = out / "instructions" / "query_instructions.tsv"
    write_whole(path, "\n".join(lines) + "\n")


def write_pictures(out: Path, corpus: IconCorpus, rows: Iterable[IconRow], seed: int) -> None:
    """Writes PNG files of pictures under their paths.

    Glyphs are black, a share of them in one of six colours, on a transparent ground.
    """
    colours = sum(row.colour for row in corpus.rows)
    pictures = np.load(out / PICTURE_ARRAY, mmap_mode="r")
    glyphs = np.load(out / GLYPH_ARRAY, mmap_mode="r")
    for row in sorted(rows, key=lambda row: row.row):
        if row.row < colours:
            pixels = np.array(pictures[row.row])
        else:
            alpha = np.array(glyphs[row.row - colours])
            pixels = np.empty((*alpha.shape, 4), np.uint8)
            pixels[..., :3], pixels[..., 3] = glyph_colour(row, seed), alpha
        with replacing(out / row.img_path) as file:
            Image.fromarray(pixels).save(file, "PNG")


def glyph_colour(row: IconRow, seed: int) -> tuple[int, int, int]:
    """Colour of a glyph in a test: black, or for a share of the glyphs one of six colours."""
    place = share(seed, "colour", row.set, row.icon)
    if place >= COLOURED_SHARE:
        return 0, 0, 0
    return COLOURS[int(place / COLOURED_SHARE * len(COLOURS))]
