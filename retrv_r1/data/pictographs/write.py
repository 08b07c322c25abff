"""Writes a built set in M-BEIR's layout, with its metadata and its attribution."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retrv_r1.data.pictographs.catalog import Candidate, Catalog, image_path
from retrv_r1.data.pictographs.cells import CellData
from retrv_r1.data.pictographs.draft import Draft
from retrv_r1.data.pictographs.phrases import BY_KEY, FAMILIES, SHAPES, dataset
from retrv_r1.data.pictographs.sources import Drawings
from retrv_r1.data.pictographs.splits import hashed
from retrv_r1.data.pictographs.store import Picture
from retrv_r1.files import write_whole

Row = Mapping[str, Any]


def write_text(path: Path, text: str) -> None:
    """Writes a file whole."""
    write_whole(path, text)


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """Writes one JSON object per line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def candidate_row(candidate: Candidate) -> Row:
    """A candidate with M-BEIR's fields."""
    parts = [p for p in (candidate.style and "image", candidate.text and "text") if p]
    return {
        "txt": candidate.text,
        "img_path": candidate.img_path,
        "modality": ",".join(parts),
        "did": candidate.did,
        "src_content": None,
    }


def query_row(qid: str, draft: Draft, key: str) -> Row:
    """A query with M-BEIR's fields."""
    return {
        "qid": qid,
        "query_txt": draft.text,
        "query_img_path": image_path(*draft.image) if draft.image else None,
        "query_modality": BY_KEY[key].query_modality,
        "query_src_content": None,
        "pos_cand_list": list(draft.positives),
        "neg_cand_list": list(draft.negatives),
        "task_id": BY_KEY[key].task,
    }


def concept_fields(catalog: Catalog, code: str) -> dict[str, Any]:
    """Fields of a concept in the metadata."""
    c = catalog.concepts[code]
    return {
        "code": code,
        "name": c.name,
        "role": c.role,
        "base": c.base,
        "skin_tone": c.tone or None,
        "gender": c.gender or None,
        "hair": c.hair or None,
        "facing": c.facing or None,
        "group": c.group,
        "subgroup": c.subgroup or None,
        "split": catalog.side(code),
    }


def query_metadata(catalog: Catalog, qid: str, draft: Draft, cell: CellData) -> Row:
    """Fields of a query in the metadata, from which chains of thought can be written."""
    details = dict(draft.details)
    source = draft.image[1] if draft.image else None
    return {
        "qid": qid,
        "cell": dataset(BY_KEY[cell.key], cell.scene.name)[1],
        "split": cell.scene.split,
        "evaluation": cell.scene.name,
        "kind": draft.kind,
        "target": concept_fields(catalog, draft.target),
        "source": concept_fields(catalog, source) if source else None,
        "style": draft.image[0] if draft.image else None,
        "change": details.pop("change", None),
        "language": details.pop("language", None),
        "keywords": details.pop("keywords", None),
        "details": {k: v for k, v in details.items() if k not in ("source", "question")} or None,
    }


def write_cell(root: Path, catalog: Catalog, cell: CellData, first: int) -> list[Row]:
    """Writes one cell's queries, qrels and local pool; returns the queries' metadata.

    Args:
        first: number of the first query within its dataset.
    """
    number, name = dataset(BY_KEY[cell.key], cell.scene.name)
    split = cell.scene.split
    drafts = list(cell.drafts)
    catalog.rng("order", cell.scene.name, cell.key).shuffle(drafts)
    numbered = [(f"{number}:{first + i}", draft) for i, draft in enumerate(drafts)]
    stem = f"mbeir_{name}_{split}"
    write_jsonl(
        root / "query" / split / f"{stem}.jsonl",
        (query_row(qid, draft, cell.key) for qid, draft in numbered),
    )
    task = BY_KEY[cell.key].task
    write_text(
        root / "qrels" / split / f"{stem}_qrels.txt",
        "".join(f"{qid} 0 {did} 1 {task}\n" for qid, d in numbered for did in d.positives),
    )
    write_pool(root / "cand_pool" / "local" / f"{stem}_cand_pool.jsonl", catalog, cell.pool)
    return [query_metadata(catalog, qid, draft, cell) for qid, draft in numbered]


def write_pool(path: Path, catalog: Catalog, dids: Iterable[str]) -> None:
    """Writes a candidate pool in random order.

    Positives have the lowest numbers; in their order, ties would favour them.
    """
    by_did = catalog.candidates.by_did
    shuffled = sorted(set(dids), key=lambda did: hashed(catalog.seed, "pool", did))
    write_jsonl(path, (candidate_row(by_did[did]) for did in shuffled))


def union_stem(scene: str) -> str:
    """Name of the global pool of a scene."""
    return f"mbeir_union_{scene}" if scene in ("train", "val", "test") else (
        f"mbeir_union_{scene}_test"
    )  # fmt: skip


def write_instructions(root: Path, datasets: Mapping[str, int]) -> None:
    """Writes the instructions of the given datasets behind M-BEIR's header."""
    header = ["query_modality", "cand_modality", "dataset_name", "dataset_id"]
    lines = ["\t".join([*header, *(f"prompt_{i}" for i in range(1, 5))])]
    for family in FAMILIES:
        for shape in SHAPES:
            number, name = dataset(shape, family)
            if name in datasets:
                fields = [shape.query_modality, shape.cand_modality, name, str(number)]
                lines.append("\t".join([*fields, *shape.prompts]))
    write_text(root / "instructions" / "query_instructions.tsv", "\n".join(lines) + "\n")


def write_metadata(root: Path, catalog: Catalog, pictures: Sequence[Picture]) -> None:
    """Writes `pictures.jsonl` and `metadata.jsonl`, one line per picture and per candidate."""
    row_of = {(p.style, p.code): p.row for p in pictures}
    write_jsonl(
        root / "pictures.jsonl",
        (
            {
                "row": p.row,
                "img_path": p.img_path,
                "style": p.style,
                "code": p.code,
                "name": catalog.concepts[p.code].name,
                "split": catalog.side(p.code),
                "duplicate_of": p.duplicate_of,
            }
            for p in pictures
        ),
    )

    def rows() -> Iterable[Row]:
        for c in catalog.candidates.by_did.values():
            yield {
                "did": c.did,
                "kind": c.kind,
                "img_path": c.img_path,
                "row": row_of[c.style, c.code] if c.style else None,
                "style": c.style,
                "txt": c.text,
                "language": c.language,
                **concept_fields(catalog, c.code),
                "keywords": list(catalog.concepts[c.code].keywords),
            }

    write_jsonl(root / "metadata.jsonl", rows())


def attribution(drawings: Sequence[Drawings], cldr: str, glosses: Mapping[str, str]) -> str:
    """Markdown with author, licence, version and address of every source in use."""
    lines = [
        "# Attribution",
        "",
        "The pictures were rendered from these works: cropped to their drawing, padded to a",
        "square and reduced. Pictures of CC BY-SA works stay under CC BY-SA.",
        "",
        "| style | author | licence | package | source |",
        "|---|---|---|---|---|",
    ]
    for d in drawings:
        s = d.style
        package = f"{s.package} {d.version}"
        lines.append(f"| {s.name} | {s.author} | {s.licence} | {package} | {s.url} |")
    lines += [
        "",
        "Names: the Python package `emoji` (BSD), which carries Unicode's names (Unicode licence).",
    ]
    if cldr:
        lines.append(f"Keywords and labels: Unicode CLDR, {cldr} (Unicode-DFS-2016).")
    if glosses:
        lines.append("Glosses: WordNet 3.0, Copyright 2006 Princeton University (WordNet licence).")
    return "\n".join(lines) + "\n"


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
