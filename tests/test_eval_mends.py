"""What an evaluation says, refuses or removes, so that its report shows nothing that is not so."""

from __future__ import annotations

import sqlite3

import pytest
import torch
from eval_fixtures import Stage, evaluate, write_cell, write_lines

from retrv_engine import RequestTooLarge
from retrv_r1.data import mbeir
from retrv_r1.eval import EvalError
from retrv_r1.eval.candidates import read_lists
from retrv_r1.eval.pictures import FILE, Pictures
from retrv_r1.eval.retrieval import Retriever
from retrv_r1.eval.settings import EvalSettings
from retrv_r1.eval.vectors import VectorFile
from retrv_r1.types import Item

pytest_plugins = ("eval_fixtures",)

FAST = {"modes": ("fast",), "full_tokens": False}


def give(path, dids, depth=2):
    """Writes a run that gives each of the three queries the same candidates."""
    lines = [
        f"9:{query} Q0 9:{did} {rank} {10 - rank} t\n"
        for query in (1, 2, 3)
        for rank, did in enumerate(dids[:depth], 1)
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(lines))
    return path


@pytest.fixture
def two_cells(tmp_path):
    """Cells a and b, and a union pool that has one candidate more."""
    root = tmp_path / "set"
    for name in ("a_task1", "b_task1"):
        write_cell(root, name)
    pool = [{"did": f"9:{c}", "txt": f"c{c % 6}", "modality": "text"} for c in (*range(6), 77)]
    write_lines(root / "cand_pool/global/mbeir_union_test_cand_pool.jsonl", pool)
    return root


def notes_of(report):
    return " ".join(report["notes"])


def test_lists_of_one_evaluation_are_looked_up_in_one_pool(
    two_cells, model_files, ranker, tmp_path
):
    give(tmp_path / "lists/a_task1.trec", [1, 2])
    give(tmp_path / "lists/b_task1.trec", [1, 77])
    report = evaluate(two_cells, model_files, candidates=str(tmp_path / "lists"), **FAST)
    (part,) = report["parts"]
    assert part["part"] == "test, global pool"
    assert [cell["pool"] for cell in part["cells"]] == [7, 7]
    assert "which pool that first stage searched is not known" in notes_of(report)


def test_a_cell_without_lists_of_that_pool_leaves_the_part(
    two_cells, model_files, ranker, tmp_path
):
    give(tmp_path / "lists/a_task1_local.trec", [1, 2])
    give(tmp_path / "lists/b_task1.trec", [1, 77])
    report = evaluate(two_cells, model_files, candidates=str(tmp_path / "lists"), **FAST)
    assert [part["part"] for part in report["parts"]] == ["test, global pool"]
    assert [(bad["cell"], bad["pool"]) for bad in report["bad_cells"]] == [("a_task1", "global")]


def test_a_file_of_lists_is_read_once_and_not_kept(
    two_cells, model_files, ranker, tmp_path, monkeypatch
):
    read, path = [], give(tmp_path / "all.trec", [1, 2])
    monkeypatch.setattr(
        "retrv_r1.eval.plan.read_lists", lambda path: read.append(path) or read_lists(path)
    )
    held, nearest = [], Retriever.nearest

    def look(retriever, work):
        held.append(work.given)
        return nearest(retriever, work)

    monkeypatch.setattr(Retriever, "nearest", look)
    report = evaluate(two_cells, model_files, candidates=str(path), limit=1, **FAST)
    assert read == [path] and len(report["parts"][0]["cells"]) == 2
    assert all(not any(isinstance(v, dict) for v in vars(one).values()) for one in held)
    assert [len(one.load()) for one in held] == [1, 1]  # of three


def test_short_lists_are_counted(two_cells, model_files, ranker, tmp_path):
    path = give(tmp_path / "all.trec", range(6), depth=3)
    for k, short in ((3, 0), (6, 3), (50, 3)):
        report = evaluate(two_cells, model_files, candidates=str(path), k=(2, k), **FAST)
        counts = [
            cell["counts"]["queries_with_short_lists"] for cell in report["parts"][0]["cells"]
        ]
        assert counts == [short, short]
        assert (f"{2 * short} queries have fewer candidates" in notes_of(report)) == bool(short)
    whole = give(tmp_path / "all.trec", range(6), depth=6)  # all that the pool has
    report = evaluate(two_cells, model_files, candidates=str(whole), k=(50,), **FAST)
    assert report["parts"][0]["cells"][0]["counts"]["queries_with_short_lists"] == 0


def test_run_files_are_those_of_the_report(two_cells, model_files, ranker, tmp_path):
    out = tmp_path / "out"
    evaluate(two_cells, model_files, out=out, pool="both", **FAST)
    assert len(list((out / "runs").glob("*/*.trec"))) == 2 * 2 * 3
    (out / "runs/a_task1_test/mine.trec").write_text("x")
    evaluate(two_cells, model_files, out=out, cells=["a_task1"], k=(2,), **FAST)
    left = {path.relative_to(out / "runs").as_posix() for path in (out / "runs").glob("*/*")}
    names = ("first-stage", "fast-k2", "mine")
    assert left == {f"a_task1_test/{name}.trec" for name in names}


def test_run_files_are_replaced_whole(two_cells, model_files, ranker, tmp_path):
    out = tmp_path / "out"
    evaluate(two_cells, model_files, out=out, **FAST)
    path = out / "runs/a_task1_test/first-stage.trec"
    before = path.stat().st_ino
    evaluate(two_cells, model_files, out=out, **FAST)
    assert path.stat().st_ino != before  # another file took its place


def test_lists_are_not_overwritten(two_cells, model_files, ranker, tmp_path):
    out = tmp_path / "out"
    evaluate(two_cells, model_files, out=out, **FAST)
    for given in (out / "runs", out, out / "runs/a_task1_test/first-stage.trec"):
        with pytest.raises(EvalError, match=r"would be overwritten.*name another --out"):
            evaluate(two_cells, model_files, out=out, candidates=str(given), **FAST)


def test_a_prompt_too_large_costs_its_cell(two_cells, model_files, ranker, monkeypatch):
    asked = []

    def rank_batch(requests, **options):
        asked.append(requests)
        if len(asked) == 1:
            raise RequestTooLarge("a request of 9 rows does not fit")
        return type(ranker).rank_batch(ranker, requests, **options)

    monkeypatch.setattr(ranker, "rank_batch", rank_batch, raising=False)
    report = evaluate(two_cells, model_files, **FAST)
    assert [cell["cell"] for cell in report["parts"][0]["cells"]] == ["b_task1"]
    (bad,) = report["bad_cells"]
    assert bad["cell"] == "a_task1" and "does not fit; or lower --window or --k" in bad["error"]


def test_a_full_disk_is_said_before_vectors_are_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    file = VectorFile(tmp_path, "pool", "a" * 12, "b" * 12, 1000)
    with pytest.raises(EvalError, match=r"no space for the 2 MB .*name an --out on a larger disk"):
        file.fill(lambda items: (torch.zeros(len(items), 500), 0), _items, "pool")


def _items(start, stop):
    return [Item(text="x")] * (stop - start)


def test_vectors_have_their_space_on_disk(tmp_path):
    file = VectorFile(tmp_path, "pool", "a" * 12, "b" * 12, 600)

    def embed(items):
        for path in tmp_path.glob("*.partial"):
            assert path.stat().st_blocks * 512 >= 600 * 500 * 4
        return torch.ones(len(items), 500), 0

    assert file.fill(embed, _items, "pool").sum() == 600 * 500


def test_queries_that_the_first_stage_cuts_are_said(
    dataset, model_files, ranker, tmp_path, monkeypatch
):
    class Cutting(Stage):
        def embed(self, items, what=""):
            self.cut_places = [i for i, item in enumerate(items) if item.text[0] == "5"]
            return super().embed(items)

    names = "retrv_r1.eval.models.FirstStage.from_pretrained"
    monkeypatch.setattr(names, lambda *_, **__: Cutting())
    for _ in range(2):  # the second time it is read from disk
        report = evaluate(dataset, model_files, out=tmp_path / "out", **FAST)
        assert "It cut 1 queries to 24 tokens." in notes_of(report)


def test_what_windows_keep_of_the_first_stages_order_is_said(dataset, model_files, ranker):
    for options, said in (
        ({"order": "retrieved", "window": 5}, True),
        ({"order": "retrieved", "window": 6}, False),
        ({"order": "shuffled", "window": 5}, False),
    ):
        report = evaluate(dataset, model_files, **FAST, **options)
        assert ("keeps some of the first stage's order" in notes_of(report)) == said


def test_options_that_say_the_same_are_refused():
    for full in (False, True):
        with pytest.raises(EvalError, match="readings and full_tokens"):
            EvalSettings(readings=("full",), full_tokens=full)


def test_earlier_windows_count_only_where_there_are_some(dataset, model_files, ranker, tmp_path):
    options = {"modes": ("reason",), "full_tokens": False, "out": tmp_path / "out"}
    for window, again in ((6, 0), (5, 3)):
        evaluate(dataset, model_files, window=window, **options)
        before = len(ranker.asked)
        evaluate(dataset, model_files, window=window, earlier_windows="same", **options)
        assert len(ranker.asked) - before == again


@pytest.mark.parametrize("options", [{"split": "val"}, {"limit": 2}, {}])
def test_what_is_not_the_benchmark_is_said(tmp_path, model_files, ranker, options):
    write_cell(tmp_path / "set", "webqa_task1", options.get("split", "test"))
    report = evaluate(tmp_path / "set", model_files, **FAST, **options)
    assert ("do not compare the numbers" in notes_of(report)) == bool(options)


@pytest.mark.parametrize(
    ("error", "fix"),
    [("database is locked", "name another --out"), ("disk image is malformed", "delete it")],
)
def test_a_picture_database_that_fails_late_is_said(tmp_path, monkeypatch, error, fix):
    def fail(*_):
        raise sqlite3.OperationalError(error)

    pictures = Pictures(tmp_path, tmp_path)
    monkeypatch.setattr(pictures, "_look", fail)
    with pytest.raises(EvalError, match=f"cannot use {FILE} in .*{error}.*{fix}"):
        pictures.check(["a.png"])
    pictures.close()


def test_qrels_that_judge_nothing_relevant_decide(dataset):
    qrels = dataset / "qrels/test/mbeir_toy_test_qrels.txt"
    qrels.parent.mkdir(parents=True)
    qrels.write_text("9:1 0 9:1 0 1\n")
    with pytest.raises(mbeir.MBEIRError, match=r"query 9:1 has no positive.*add one to the qrels"):
        mbeir.load(dataset, "toy", "test", strict=False)
    qrels.write_text("9:2 0 9:1 1 1\n")
    positives = {q.qid: q.positives for q in mbeir.load(dataset, "toy", "test").queries}
    assert positives == {"9:1": ("9:1",), "9:2": ("9:1",), "9:3": ("9:0", "9:5")}


def test_counts_are_computed_once(dataset, model_files, ranker, monkeypatch):
    asked = []
    contains = mbeir.CandidatePool.__contains__

    def count(pool, did):
        asked.append(did)
        return contains(pool, did)

    monkeypatch.setattr(mbeir.CandidatePool, "__contains__", count)
    evaluate(dataset, model_files, **FAST)
    assert len(asked) <= 4  # four positives, each once


def test_errors_of_lists_name_their_fix(two_cells, model_files, ranker, tmp_path):
    path = give(tmp_path / "all.trec", [99, 1])
    with pytest.raises(EvalError, match=r"names 9:99, which is not in .*choose another --pool"):
        evaluate(two_cells, model_files, candidates=str(path), **FAST)
