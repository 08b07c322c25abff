"""Reading of cells before the ranking, bad pictures, and vectors that are kept."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from retrv_r1.eval import EvalError, run
from retrv_r1.eval.cells import choose
from retrv_r1.eval.metrics import hits
from retrv_r1.eval.notes import remarks
from retrv_r1.eval.plan import read_cells
from retrv_r1.eval.retrieval import Retriever
from retrv_r1.eval.settings import EvalSettings
from retrv_r1.images import load_image

COLOURS = ("red", "green", "blue", "white", "black")
CELLS = ("one_task4", "two_task4")


def paint(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 9, (48, 48, 3), dtype=np.uint8)
    solid = Image.new("RGB", (48, 48), colour)
    Image.blend(solid, Image.fromarray(noise), 0.1).save(path)


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def root(tmp_path):
    """Two cells of pictures, with a local pool each and the same candidates in the global one."""
    root = tmp_path / "set"
    for number, colour in enumerate(COLOURS):
        paint(root / f"pictures/{number}.png", colour)
        paint(root / f"asked/{number}.png", colour)
    pool = [
        {"did": f"4:{i}", "img_path": f"pictures/{i}.png", "modality": "image"}
        for i in range(len(COLOURS))
    ]
    for cell in CELLS:
        queries = [
            {
                "qid": f"4:{i}",
                "query_img_path": f"asked/{i}.png",
                "query_modality": "image",
                "pos_cand_list": [f"4:{i}"],
                "task_id": 4,
            }
            for i in range(3)
        ]
        write_lines(root / f"query/test/mbeir_{cell}_test.jsonl", queries)
        write_lines(root / f"cand_pool/local/mbeir_{cell}_cand_pool.jsonl", pool)
    write_lines(root / "cand_pool/global/mbeir_union_test_cand_pool.jsonl", pool)
    write_lines(root / "instructions/query_instructions.tsv", [])
    table = "query\tcandidate\tname\tid\tprompt\nimage\timage\tnights\t4\tFind the same.\n"
    (root / "instructions/query_instructions.tsv").write_text(table)
    return root


class Stage:
    """Mean colours as vectors; records what it embeds."""

    cut, cut_places = 0, ()

    def __init__(self):
        self.seen = []
        self.dies_at = None
        self.cut = 0

    def embed(self, items, *, what=""):
        rows = []
        for item in items:
            if len(self.seen) == self.dies_at:
                raise KeyboardInterrupt
            self.seen.append(item.image.parent.name)
            rows.append(np.asarray(load_image(item.image), np.float32).mean((0, 1)) / 255 - 0.5)
        return torch.nn.functional.normalize(torch.from_numpy(np.stack(rows)), dim=-1)

    def search(self, queries, pool, k, tie_seeds):
        found = (queries @ pool.T).topk(min(k, len(pool)))
        return found.values, found.indices


@pytest.fixture
def models():
    return SimpleNamespace(
        fingerprint="a",
        first_stage_fingerprint="b",
        first_stage=Stage(),
        reads_instructions=False,
    )


def plan_of(root, out=None, **options):
    settings = EvalSettings(k=(2,), **options)
    return read_cells(root, choose(root, "all"), settings, out), settings


def retrieve(root, models, out=None, **options):
    """The outcomes of every cell; ``models`` knows afterwards what was embedded for them."""
    if out is not None:
        out.mkdir(exist_ok=True)
    plan, settings = plan_of(root, out, **options)
    models.first_stage.seen.clear()
    retriever = Retriever(models, settings, out)
    return [retriever.nearest(work) for work in plan.works]


def kept_vectors(out):
    (path,) = (out / "vectors").glob("*.npy")
    return np.load(path)


@pytest.mark.parametrize("kept", [True, False])
def test_a_pool_is_embedded_once_for_all_cells(root, models, tmp_path, kept):
    found = retrieve(root, models, tmp_path / "out" if kept else None, pool="global")
    for outcomes in found:
        assert all(outcome.ranking[0] == outcome.qid for outcome in outcomes)
    assert models.first_stage.seen.count("pictures") == len(COLOURS)


def test_vectors_outlive_a_new_reranker_only(root, models, tmp_path):
    retrieve(root, models, tmp_path / "out", pool="global")
    models.fingerprint = "another reranker"
    retrieve(root, models, tmp_path / "out", pool="global")
    assert models.first_stage.seen == ["asked"] * 6
    models.fingerprint = models.first_stage_fingerprint = "another first stage"
    retrieve(root, models, tmp_path / "out", pool="global")
    assert models.first_stage.seen.count("pictures") == len(COLOURS)


def test_a_killed_embedding_goes_on(root, models, tmp_path, monkeypatch):
    monkeypatch.setattr("retrv_r1.eval.vectors.BLOCK", 2)
    retrieve(root, models, tmp_path / "whole", pool="global")
    models.first_stage.dies_at = 3
    with pytest.raises(KeyboardInterrupt):
        retrieve(root, models, tmp_path / "out", pool="global")
    models.first_stage.dies_at = None
    retrieve(root, models, tmp_path / "out", pool="global")
    assert models.first_stage.seen.count("pictures") == 3
    assert np.array_equal(kept_vectors(tmp_path / "out"), kept_vectors(tmp_path / "whole"))


@pytest.mark.parametrize("name", ["pictures/1.png", "asked/1.png"])
def test_a_replaced_picture_is_other_data(root, models, tmp_path, name):
    """Also one of the same size; what was kept for the old one is removed."""
    out = tmp_path / "out"
    before = retrieve(root, models, out, pool="global")
    assert retrieve(root, models, out, pool="global") == before
    assert models.first_stage.seen == []
    paint(root / name, "black")
    after = retrieve(root, models, out, pool="global")
    assert [[o.ranking for o in cell] for cell in after] != [[o.ranking for o in c] for c in before]
    assert len(list((out / "vectors").glob("*.npy"))) == 1
    assert len(list((out / "outcomes").rglob("*.jsonl"))) == len(CELLS)


def test_a_failure_to_read_a_picture_is_not_remembered(root, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("the disk is away")

    with monkeypatch.context() as broken:
        broken.setattr("retrv_r1.eval.pictures.load_image", fail)
        with pytest.raises(EvalError, match="the disk is away"):
            plan_of(root, tmp_path)
    assert len(plan_of(root, tmp_path)[0].works) == len(CELLS)


def test_another_device_starts_anew(root, models, tmp_path):
    retrieve(root, models, tmp_path / "out")
    retrieve(root, models, tmp_path / "out", device="cuda")
    assert models.first_stage.seen.count("asked") == 6


def test_bad_pictures_are_named_before_anything_is_ranked(root, monkeypatch):
    def load(*_, **__):
        raise AssertionError("nothing may be loaded")

    monkeypatch.setattr("retrv_r1.eval.models.FirstStage.from_pretrained", load)
    (root / "pictures/1.png").unlink()
    whole = (root / "pictures/3.png").read_bytes()
    (root / "pictures/3.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EvalError, match=r"one_task4_cand_pool.jsonl: 2 candidates") as caught:
        run(root, k=(2,))
    for part in ("line 2: no such picture file", "line 4: ", "3.png is damaged", "--skip-bad"):
        assert part in str(caught.value)


def test_bad_pictures_can_be_left_out_and_are_counted(root, models):
    (root / "pictures/4.png").write_bytes(b"no picture")
    (root / "asked/2.png").unlink()
    plan, _ = plan_of(root, skip_bad=True)
    work = plan.works[0]
    assert [query.qid for query in sorted(work.queries, key=lambda q: q.qid)] == ["4:0", "4:1"]
    assert [candidate.did for candidate in work.task.pool] == ["4:0", "4:1", "4:2", "4:3"]
    assert (work.counts["skipped_candidates"], work.counts["skipped_queries"]) == (1, 1)
    assert any(note.startswith("2 candidates were left out") for note in remarks(plan.works))
    found = retrieve(root, models, skip_bad=True)
    assert {did for cell in found for outcome in cell for did in outcome.ranking} <= {
        *("4:0", "4:1", "4:2", "4:3"),
    }


def test_a_bad_picture_of_a_query_costs_its_cell(root):
    path = root / "query/test/mbeir_two_task4_test.jsonl"
    path.write_text(path.read_text().replace("asked/2", "asked/none"))
    plan, _ = plan_of(root)
    assert [work.cell.dataset for work in plan.works] == ["one_task4"]
    (bad,) = plan.bad
    assert bad.cell == "two_task4"
    assert "mbeir_two_task4_test.jsonl: 1 queries" in bad.error
    assert "line 3: no such picture file" in bad.error


def test_a_query_without_a_positive_in_the_pool_counts_as_not_found(root, models):
    path = root / "query/test/mbeir_one_task4_test.jsonl"
    path.write_text(
        path.read_text().replace('["4:1"]', '["4:1", "9:9"]').replace('["4:2"]', '["9:8"]')
    )
    plan, settings = plan_of(root)
    work = plan.works[0]
    assert work.counts["positives_outside_the_pool"] == 2
    assert work.counts["queries_without_a_positive"] == 1
    outcomes = Retriever(models, settings, None).nearest(work)
    found = hits(outcomes, {query.qid: query.positives for query in work.queries}, (1,))
    assert found[1].mean() == pytest.approx(2 / 3)
    assert any("1 queries have no positive in the pool" in note for note in remarks(plan.works))


def test_lists_unlike_the_qrels_are_counted(root):
    qrels = root / "qrels/test/mbeir_one_task4_test_qrels.txt"
    qrels.parent.mkdir(parents=True)
    qrels.write_text("4:0 0 4:0 1 4\n4:1 0 4:3 1 4\n")
    plan, _ = plan_of(root)
    assert [w.counts["queries_with_lists_unlike_the_qrels"] for w in plan.works] == [1, 0]
    assert {q.qid: q.positives for q in plan.works[0].queries}["4:1"] == ("4:3",)


def test_a_missing_instruction_is_said_on_reading(root):
    (root / "instructions/query_instructions.tsv").unlink()
    with pytest.raises(EvalError, match="has no instruction"):
        plan_of(root)


def test_a_folder_that_cannot_be_written_is_said_first(root, tmp_path):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(EvalError, match=r"cannot write to .*file"):
            run(root, model=tmp_path / "no model", out=out)
