"""Evaluation with an untrained model, from pictures to a report."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from retrv_r1.eval import calibrate, run
from retrv_r1.model.calibration import ModeCalibration
from retrv_r1.model.icm import InformationCompressor

POOL, QUERIES = 5, 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A data set in M-BEIR's layout, with image-and-text queries for images."""
    root = tmp_path_factory.mktemp("set")
    pixels = np.random.default_rng(0).integers(0, 256, (POOL, 40, 32, 3), dtype=np.uint8)
    (root / "pictures").mkdir()
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(root / f"pictures/{i}.png")

    def write(path, rows):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("".join(json.dumps(row) + "\n" for row in rows))

    pool = [
        {"did": f"9:{i}", "txt": None, "img_path": f"pictures/{i}.png", "modality": "image"}
        for i in range(POOL)
    ]
    queries = [
        {
            "qid": f"9:{100 + i}",
            "query_txt": "make it red",
            "query_img_path": f"pictures/{i}.png",
            "query_modality": "image,text",
            "pos_cand_list": [f"9:{i + 1}"],
            "task_id": 7,
        }
        for i in range(QUERIES)
    ]
    for split in ("val", "test"):
        write(f"query/{split}/mbeir_toy_{split}.jsonl", queries)
    write("cand_pool/local/mbeir_toy_cand_pool.jsonl", pool)
    table = "query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\n"
    table += "image,text\timage\ttoy\t9\tFind the changed picture.\n"
    write("instructions/query_instructions.tsv", [])
    (root / "instructions/query_instructions.tsv").write_text(table)
    return root


def test_every_system_ranks_the_first_stages_best(two_stages, dataset, tmp_path):
    report = run(dataset, model=two_stages, k=(3, 50), out=tmp_path, batch_size=2)
    (part,) = report["parts"]
    (cell,) = part["cells"]
    assert (part["part"], cell["shape"], cell["pool"]) == ("test", "it → i", POOL)
    assert len(cell["results"]) == 9
    first, *rows = cell["results"]
    assert first["recall"]["50"] == 1  # the whole pool, which is smaller
    for row in rows:
        assert row["recall"]["10"] == first["recall"][str(row["k"])]
        assert row["cost"]["seconds"] > 0
    cost = {(row["system"], row["k"]): row["cost"] for row in rows}
    for mode in ("fast", "reason"):
        compressed, full = cost[mode, 3], cost[f"{mode}, full tokens", 3]
        assert compressed["rows_per_candidate"] < full["rows_per_candidate"]
    assert cost["fast", 3]["inspections"] == 0
    assert report["checks"]["lists"] == 8 * QUERIES
    lines = (tmp_path / "runs/toy_test/reason-full-k50.trec").read_text().splitlines()
    assert len(lines) == QUERIES * POOL
    again = run(dataset, model=two_stages, k=(3, 50), out=tmp_path, batch_size=2)
    assert again == report


def test_relation_keys_are_rounded_where_that_is_asked_for(
    two_stages, dataset, tmp_path, monkeypatch
):
    seen = set()
    keys = InformationCompressor.relation_keys

    def watched(self, features):
        made = keys(self, features)
        seen.add(made[0].dtype)
        return made

    monkeypatch.setattr(InformationCompressor, "relation_keys", watched)
    options = dict(model=two_stages, k=(3,), modes=("fast",), full_tokens=False, out=tmp_path)
    notes = [run(dataset, int8_keys=rounded, **options)["notes"] for rounded in (False, True)]
    assert seen == {torch.float32, torch.int8}, "kept outcomes of the one are not the other's"
    assert set(notes[1]) - set(notes[0]) == {"Relation keys were rounded to int8."}


def test_calibration_reads_logits_off_scores(two_stages, dataset, monkeypatch):
    """The fitted calibration does not depend on the checkpoint's earlier one."""
    seen = []
    fitted = ModeCalibration(2.0, none_bias=0.5)

    def fit(lists):
        seen.append(torch.cat([lists.logits, lists.none[:, None]], -1))
        seen[-1] -= lists.logits.amax(-1, keepdim=True)
        return fitted, {}

    monkeypatch.setattr("retrv_r1.eval.calibration.fit", fit)
    path = two_stages / "config.json"
    before = path.read_text()
    try:
        for one in (ModeCalibration(), ModeCalibration(3.0, -0.2, 1.0)):
            values = json.loads(before)
            changed = {"calibration": {"fast": asdict(one), "reason": None}}
            path.write_text(json.dumps(values | changed))
            (result,) = calibrate(two_stages, dataset, modes=("fast",), k=POOL).values()
            assert (result.before, result.lists) == (one, QUERIES)
            written = {"fast": asdict(fitted), "reason": None}
            assert json.loads(path.read_text()) == values | {"calibration": written}
    finally:
        path.write_text(before)
    assert seen[0].shape == seen[1].shape and seen[0].shape[0] == QUERIES
    assert torch.allclose(seen[0].nan_to_num(neginf=0), seen[1].nan_to_num(neginf=0), atol=1e-6)
    assert float(seen[0].min()) < 0
