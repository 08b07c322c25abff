"""A pytest plugin: a small data set and what training draws from it.

Tests that need it name it in ``pytest_plugins``, so that others do not load the training code.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from retrv_r1.train.corpus import Corpus
from retrv_r1.train.entry_vectors import Vectors
from retrv_r1.train.named import named_pictures
from retrv_r1.train.pictures import PictureBank
from retrv_r1.train.sampling import ListSampler

STYLES, CONCEPTS, SIDE = ("flat", "bold"), 10, 16
NOUNS = ("red apple", "blue bird", "high sky", "green tree", "old house")


@pytest.fixture(scope="session")
def pictographs(tmp_path_factory) -> Path:
    """A data set of twenty pictures in the built one's layout: two styles of ten concepts."""
    root = tmp_path_factory.mktemp("pictographs")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (len(STYLES) * CONCEPTS, SIDE, SIDE, 4), np.uint8)
    pixels[..., 3] = 255 * (pixels[..., 3] > 60)
    np.save(root / "pictures.npy", pixels)
    pictures, known, pool = [], [], {"picture": [], "name": []}
    for row in range(len(pixels)):
        style, concept = divmod(row, CONCEPTS)
        path = f"mbeir_images/{STYLES[style]}/{concept}.png"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[row], "RGBA").save(root / path)
        pictures.append({"row": row, "img_path": path, "code": f"C{concept}"})
        pool["picture"].append((f"100:{row + 1}", None, path, concept))
    for concept in range(CONCEPTS):
        pool["name"].append((f"100:{101 + concept}", name_of(concept), None, concept))
    for did, _, _, concept in (*pool["picture"], *pool["name"]):
        about = {"name": name_of(concept), "base": f"B{concept // 2}", "subgroup": f"S{concept}"}
        known.append({"did": did, "code": f"C{concept}", **about})
    write_lines(root / "pictures.jsonl", pictures)
    write_lines(root / "metadata.jsonl", known)
    (root / "manifest.json").write_text('{"hash": "of the test data"}')
    table = ["query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\tprompt_2"]
    kinds = {"text": "name", "image": "picture"}
    for number, (cell, query, candidate) in enumerate(
        [("t2i", "text", "image"), ("i2t", "image", "text"), ("i2i", "image", "image")]
    ):
        table.append(f"{query}\t{candidate}\tmade_{cell}\t{200 + number}\tWhich fits?\tFind it.")
        candidates, asked = pool[kinds[candidate]], pool[kinds[query]]
        for split in ("train", "val"):
            write_lines(
                root / f"cand_pool/local/mbeir_made_{cell}_{split}_cand_pool.jsonl",
                [
                    {"did": did, "txt": text, "img_path": path, "modality": candidate}
                    for did, text, path, _ in candidates
                ],
            )
            rows = []
            for text_id, (did, text, path, concept) in enumerate(asked):
                right = [c for c in candidates if c[3] == concept and c[0] != did]
                wrong = [c for c in candidates if c[3] != concept and c[3] // 5 == concept // 5]
                rows.append(
                    {
                        "qid": f"{200 + number}:{text_id + 1}",
                        "query_txt": text,
                        "query_img_path": path,
                        "query_modality": query,
                        "pos_cand_list": [c[0] for c in right],
                        "neg_cand_list": [c[0] for c in wrong],
                        "task_id": {"t2i": 0, "i2t": 3, "i2i": 4}[cell],
                    }
                )
            write_lines(root / f"query/{split}/mbeir_made_{cell}_{split}.jsonl", rows)
    (root / "instructions").mkdir()
    (root / "instructions/query_instructions.tsv").write_text("\n".join(table) + "\n")
    return root


ICONS = ("violin", "bell", "house", "user plus", "tent")
HANDS = ("noto", "tabler", "mdi")
TONES = ("", "dark")


@pytest.fixture(scope="session")
def icons(tmp_path_factory) -> Path:
    """A data set in the layout of icons: one hand draws in colour, two draw glyphs.

    Training does not see ``tent``; one hand draws a hand in two skin tones.
    """
    root = tmp_path_factory.mktemp("icons")
    rng = np.random.default_rng(1)
    drawn = [(HANDS[0], "waving hand", tone) for tone in TONES]
    drawn += [(hand, code, "") for hand in HANDS for code in ICONS]
    rows, known = [], []
    for row, (hand, code, tone) in enumerate(drawn):
        name = f"{code} {tone} skin tone" if tone else code
        about = {"img_path": f"icons/{hand}/{name}.png", "code": code, "name": name}
        split = "test" if code == "tent" else "train"
        rows.append(
            {"row": row, **about, "family": hand, "skin": tone, "gender": "", "split": split}
        )
        known.append({"did": f"300:{row + 1}", **about, "style": hand, "base": code})
    shape = sum(row["family"] == HANDS[0] for row in rows), SIDE, SIDE
    np.save(root / "pictures.npy", rng.integers(0, 256, (*shape, 4), np.uint8))
    np.save(root / "glyphs.npy", rng.integers(0, 256, (len(rows) - shape[0], SIDE, SIDE), np.uint8))
    write_lines(root / "pictures.jsonl", rows)
    write_lines(root / "metadata.jsonl", known)
    write_lines(
        root / "terms.jsonl",
        [
            {"code": "bell", "terms": ["alarm", "ring"], "split": "train"},
            {"code": "house", "terms": ["building"], "split": "val"},
        ],
    )
    (root / "concepts.json").write_text(json.dumps({"aliases": {"house": ["home"]}}))
    (root / "manifest.json").write_text('{"hash": "of the test icons"}')
    asked = [code for code in ICONS if code != "tent"]
    for split in ("train", "val"):
        shown = [about for about in known if about["code"] in asked]
        write_lines(
            root / f"cand_pool/local/mbeir_icons_t2i_{split}_cand_pool.jsonl",
            [
                {"did": c["did"], "txt": None, "img_path": c["img_path"], "modality": "image"}
                for c in shown
            ],
        )
        rows = [
            {
                **{"qid": f"300:{n + 1}", "query_txt": code, "query_img_path": None},
                **{"query_modality": "text", "task_id": 0, "neg_cand_list": []},
                "pos_cand_list": [c["did"] for c in shown if c["code"] == code],
            }
            for n, code in enumerate(asked)
        ]
        write_lines(root / f"query/{split}/mbeir_icons_t2i_{split}.jsonl", rows)
    (root / "instructions").mkdir()
    (root / "instructions/query_instructions.tsv").write_text(
        "query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\n"
        "text\timage\ticons_t2i\t300\tFind the icon.\n"
    )
    return root


@pytest.fixture(scope="session")
def corpus(pictographs: Path) -> Corpus:
    return Corpus(pictographs, "train", PictureBank.load(pictographs))


def unit(rng: np.random.Generator, count: int) -> np.ndarray:
    vectors = rng.standard_normal((count, 8))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="session")
def vectors(corpus: Corpus) -> dict[str, Vectors]:
    rng = np.random.default_rng(0)
    return {
        name: Vectors(unit(rng, len(cell.queries)), unit(rng, len(cell.pool)))
        for name, cell in corpus.cells.items()
    }


@pytest.fixture(scope="session")
def sampler(corpus: Corpus, vectors: dict[str, Vectors]) -> ListSampler:
    return ListSampler(corpus, vectors, named_pictures(corpus))


@pytest.fixture(scope="session")
def chi_square() -> Callable[[np.ndarray], float]:
    """Pearson's statistic of counts against equal chances."""

    def statistic(counts: np.ndarray) -> float:
        expected = counts.sum() / len(counts)
        return float(((counts - expected) ** 2 / expected).sum())

    return statistic


def name_of(concept: int) -> str:
    return f"{'small' if concept % 2 else 'large'} {NOUNS[concept // 2]}"


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
