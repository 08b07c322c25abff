"""Evaluation as M-BEIR and its rerankers do it: candidates, fusion, instructions, own metric."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from eval_fixtures import QUERIES, Stage, evaluate, row_of, write_cell

from retrv_r1.eval import EvalError
from retrv_r1.eval.fusion import weight_of
from retrv_r1.eval.settings import EvalSettings

pytest_plugins = ("eval_fixtures",)


def run_of(*lists, last=""):
    """A run file: for each query its candidates, best first."""
    lines = [
        f"9:{query} Q0 9:{did} {rank} {10 - rank} t{last}"
        for query, dids in enumerate(lists, 1)
        for rank, did in enumerate(dids, 1)
    ]
    return "\n".join(lines)


@pytest.mark.parametrize("last", ["", " 1"])
def test_candidates_of_another_first_stage_are_reranked(
    dataset, model_files, ranker, tmp_path, last
):
    """No first stage is needed, and none is asked; the file's order is its recall."""
    (model_files / "embedder/config.json").unlink()
    path = tmp_path / "other.txt"
    path.write_text(run_of([1, 2], [3, 0], [4, 3, 5], last=last))
    report = evaluate(dataset, model_files, candidates=str(path), order="retrieved", k=(2, 3))
    first = row_of(report, "first stage", None)["recall"]
    assert [first[k] for k in ("1", "2", "3")] == pytest.approx([1 / 3, 2 / 3, 1])
    shown = {qid: texts for qid, _, _, texts, _ in ranker.asked if len(texts) == 3}
    assert shown == {"9:3": ["c4", "c3", "c5"]}
    assert any("lists in other.txt" in note for note in report["notes"])
    with pytest.raises(EvalError, match="names 9:7, which is not in mbeir_toy_test"):
        path.write_text(run_of([7, 1], [3, 1], [4, 1]))
        evaluate(dataset, model_files, candidates=str(path))


def test_candidates_that_the_local_pool_lacks_are_looked_up_in_the_union(
    dataset, model_files, ranker, tmp_path
):
    local = dataset / "cand_pool/local/mbeir_toy_test_cand_pool.jsonl"
    lines = local.read_text().splitlines()
    union = dataset / "cand_pool/global/mbeir_union_test_cand_pool.jsonl"
    union.parent.mkdir()
    foreign = {"did": "9:77", "txt": "c77", "modality": "text"}
    union.write_text("\n".join([*lines, json.dumps(foreign)]) + "\n")
    path = tmp_path / "other.trec"
    path.write_text(run_of([77, 1], [0, 1], [4, 1]))
    report = evaluate(dataset, model_files, candidates=str(path))
    (part,) = report["parts"]
    assert part["part"] == "test, global pool" and part["cells"][0]["pool"] == 7
    assert part["mean"][0]["cost"] == {} and "| – |  |" in report.to_markdown()  # not timed
    assert {"c77", "c1"} <= {text for *_, texts, _ in ranker.asked for text in texts}


def test_lists_of_one_search_serve_one_pool(dataset, model_files, ranker, tmp_path):
    """A folder's run of the global pool is not taken for the local one's as well."""
    test_candidates_that_the_local_pool_lacks_are_looked_up_in_the_union(
        dataset, model_files, ranker, tmp_path
    )
    with pytest.raises(EvalError, match="lists of one search"):
        evaluate(dataset, model_files, candidates=str(tmp_path / "other.trec"), pool="both")
    (tmp_path / "runs").mkdir()
    (tmp_path / "other.trec").rename(tmp_path / "runs/mbeir_toy_union_pool_test_run.txt")
    report = evaluate(dataset, model_files, candidates=str(tmp_path / "runs"), pool="both")
    assert [len(part["cells"]) for part in report["parts"]] == [1]
    assert [bad["pool"] for bad in report["bad_cells"]] == ["local"]


def test_other_lists_start_anew(dataset, model_files, ranker, tmp_path):
    path = tmp_path / "other.trec"
    for lists in ([[1, 2], [3, 4], [4, 3]], [[3, 2], [3, 4], [4, 3]]):
        path.write_text(run_of(*lists))
        report = evaluate(dataset, model_files, candidates=str(path), out=tmp_path / "out")
        right = row_of(report, "fast", 2)["recall"]["1"]
        assert right == pytest.approx(1 / 3 if lists[0] == [1, 2] else 0)


def test_run_files_for_uniir_have_the_task_id(dataset, model_files, ranker, tmp_path):
    """And come back as candidates, with the same recall."""
    report = evaluate(dataset, model_files, out=tmp_path / "out", run_format="uniir")
    lines = (tmp_path / "out/runs/toy_test/fast-k6.trec").read_text().splitlines()
    assert {(len(line.split()), line.split()[-1]) for line in lines} == {(7, "1")}
    again = evaluate(dataset, model_files, candidates=str(tmp_path / "out/runs"))
    first = row_of(report, "first stage", None)["recall"]
    assert row_of(again, "first stage", None)["recall"] == first


def test_pointwise_scores_are_added_to_the_first_stages(dataset, model_files, ranker, tmp_path):
    """The first stage's scores fall by 0.1 a rank; P(yes) of c0 … c5 is 1/2, 1/3, … 1/7."""
    options = {"readings": ("pointwise",), "modes": ("fast",), "k": (6,)}
    report = evaluate(dataset, model_files, **options, fuse=1.0)
    names = [row["system"] for row in report["parts"][0]["mean"]]
    assert names == ["first stage", "pointwise", "pointwise + first stage"]
    assert {(mode, reading) for _, mode, reading, *_ in ranker.asked} == {("fast", "pointwise")}
    for weight, right in ((1.0, 1 / 3), (0.1, 1 / 3), (100.0, 2 / 3)):
        report = evaluate(dataset, model_files, **options, fuse=weight, out=tmp_path / f"{weight}")
        assert row_of(report, "pointwise + first stage", 6)["recall"]["1"] == pytest.approx(right)
    lines = (tmp_path / "1.0/runs/toy_test/pointwise-fused-k6.trec").read_text().splitlines()
    scores = {line.split()[2]: float(line.split()[4]) for line in lines if line[:4] == "9:1 "}
    yes = {c: 1 / (c + 2) for c in range(6)}
    similar = dict(zip((2, 0, 1, 3, 4, 5), (1, 0.9, 0.8, 0.7, 0.6, 0.5), strict=True))
    assert scores == pytest.approx({f"9:{c}": similar[c] + yes[c] for c in range(6)})
    assert any("first stage's score + 100 × P(yes)" in note for note in report["notes"])


def test_fusion_needs_similarities(dataset, model_files, ranker, tmp_path):
    options = {"readings": ("pointwise",), "modes": ("fast",), "fuse": 1.0}
    path = tmp_path / "distances.trec"
    path.write_text("\n".join(f"9:{q} Q0 9:{d} {d + 1} 0.{d} t" for q in (1, 2, 3) for d in (0, 1)))
    with pytest.raises(EvalError, match="gives distances or ranks"):
        evaluate(dataset, model_files, candidates=str(path), **options)


def test_lamras_weights_are_per_cell():
    settings = EvalSettings(readings=("pointwise",), fuse="lamra")
    cells = ("mscoco_task0", "mscoco_task3", "cirr_task7")
    assert [weight_of(cell, settings) for cell in cells] == [0.5, 0.1, 1.0]
    assert weight_of("mscoco_task0", EvalSettings(readings=("pointwise",), fuse=0.7)) == 0.7


def test_instructions_are_the_first_random_ones_or_none(dataset, model_files, ranker):
    def said(**options):
        ranker.asked.clear()
        evaluate(dataset, model_files, modes=("fast",), full_tokens=False, **options)
        return [phrase for *_, phrase in ranker.asked]

    drawn = [said(instructions="random", seed=seed) for seed in range(6)]
    assert {phrase for phrases in drawn for phrase in phrases} == {
        "the first phrasing",
        "the second",
    }
    assert drawn[2] == said(instructions="random", seed=2)
    assert set(said(instructions="none")) == {None}
    (dataset / "instructions/query_instructions.tsv").unlink()
    assert set(said(instructions="none")) == {None}
    with pytest.raises(EvalError, match="has no instruction"):
        said()


def test_a_first_stage_that_reads_instructions_gets_them(dataset, model_files, ranker, monkeypatch):
    seen = []

    class Reading(Stage):
        def embed(self, items, what=""):
            seen.extend(item.text for item in items if item.text[0] != "c")
            plain = [replace(i, text=i.text.removeprefix("the first phrasing ")) for i in items]
            return super().embed(plain)

    names = "retrv_r1.eval.models.FirstStage.from_pretrained"
    monkeypatch.setattr(names, lambda *_, **__: Reading())
    reports = []
    for told in (False, True):
        (model_files / "embedder/config.json").write_text(json.dumps({"reads_instructions": told}))
        reports.append(evaluate(dataset, model_files))
    texts = [text for text, _ in QUERIES.values()]
    assert sorted(seen) == sorted([*texts, *(f"the first phrasing {text}" for text in texts)])
    said = [" ".join(report["notes"]) for report in reports]
    assert "reads queries without an instruction" in said[0]
    assert "reads queries behind their instruction" in said[1]


def test_texts_that_the_first_stage_cuts_are_said(
    dataset, model_files, ranker, tmp_path, monkeypatch
):
    class Cutting(Stage):
        def embed(self, items, what=""):
            self.cut += sum(item.text in ("c1", "c4") for item in items)
            return super().embed(items)

    names = "retrv_r1.eval.models.FirstStage.from_pretrained"
    monkeypatch.setattr(names, lambda *_, **__: Cutting())
    (model_files / "embedder/config.json").write_text('{"max_text": 3}')
    for _ in range(2):  # the second time it is read from disk
        notes = evaluate(dataset, model_files, out=tmp_path / "out")["notes"]
        assert any("reads 3 tokens of a text: 2 of 6 candidates are longer" in n for n in notes)


def test_the_benchmarks_metric_and_its_mean(tmp_path, model_files, ranker):
    """R@10 for the cells that the benchmark shows it for, R@5 for the others, in its order."""
    root = tmp_path / "set"
    for name in ("webqa_task1", "fashioniq_task7", "toy"):
        write_cell(root, name)
    report = evaluate(root, model_files, k=(2, 6), modes=("reason",), full_tokens=False)
    (part,) = report["parts"]
    assert [cell["cell"] for cell in part["cells"]] == ["webqa_task1", "fashioniq_task7", "toy"]
    assert [cell["mbeir_cutoff"] for cell in part["cells"]] == [5, 10, None]
    webqa, fashion, toy = (cell["results"][2] for cell in part["cells"])
    assert webqa["mbeir"] == webqa["recall"]["5"] == pytest.approx(2 / 3)
    assert fashion["mbeir"] == fashion["recall"]["10"] == 1 and "mbeir" not in toy
    assert part["mean"][2]["mbeir"] == pytest.approx(5 / 6)
    page = report.to_markdown()
    assert "## test, K = 6: M-BEIR in %" in page
    assert "| webqa_task1: t → t | R@5 | 66.7 |" in page  # the first stage's
    assert "mean of 2 of 16 cells" in page and "over 2 of 16 cells" in page
    assert "visualnews_task0, mscoco_task0" in page
    deep = evaluate(root, model_files, k=(20, 50), modes=("fast",), full_tokens=False)
    assert set(deep["parts"][0]["mean"][1]["recall"]) == {"1", "5", "10", "20", "50"}
    assert "| R@20 | R@50 | M-BEIR |" in deep.to_markdown()


def test_a_list_shorter_than_the_benchmarks_cutoff_has_no_such_recall(
    tmp_path, model_files, ranker
):
    root = tmp_path / "set"
    write_cell(root, "webqa_task1")
    page = evaluate(root, model_files, k=(2,), modes=("fast",), full_tokens=False).to_markdown()
    assert "| webqa_task1: t → t | R@5 | 66.7 | – |" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "sorted"}, "order must be one of 'shuffled', 'retrieved'"),
        ({"window": 1}, "window must be between 2 and 128"),
        ({"readings": ("half",)}, "readings must be"),
        ({"readings": ("pointwise",), "modes": ("reason",)}, "pointwise reading has no reasoning"),
        ({"fuse": 1.0}, "fuse needs the pointwise reading"),
        ({"fuse": "half", "readings": ("pointwise",)}, "a number or 'lamra'"),
        ({"fuse": float("nan"), "readings": ("pointwise",)}, "a finite weight of at least 0"),
        ({"fuse": -1.0, "readings": ("pointwise",)}, "a finite weight of at least 0"),
        ({"candidates": "/nowhere"}, "neither a file nor a folder"),
    ],
)
def test_options_of_the_benchmark_that_cannot_be(dataset, model_files, ranker, options, message):
    with pytest.raises(EvalError, match=message):
        evaluate(dataset, model_files, **options)
