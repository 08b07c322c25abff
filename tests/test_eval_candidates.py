"""Candidate lists of other first stages: TREC runs, LamRA's JSON, and what is wrong with them."""

from __future__ import annotations

import json

import pytest

from retrv_r1.data.mbeir import Cell
from retrv_r1.eval import EvalError
from retrv_r1.eval.candidates import find_file, lists_of, read_lists

SIX = "9:1 Q0 9:20 2 0.5 tag\n9:1 Q0 9:10 1 0.75 tag\n9:2 Q0 9:10 1 0.25 tag\n"


def write_lamra(folder, scores, cell="toy", split="test"):
    folder.mkdir(exist_ok=True)
    parts = {
        "query_names": ["9:1", "9:2"],
        "cand_names": [["9:10", "9:20"], ["9:30", "9:10"]],
        "scores": scores,
    }
    for name, value in parts.items():
        (folder / f"mbeir_{cell}_{split}_model_{name}.json").write_text(json.dumps(value))
    return folder / f"mbeir_{cell}_{split}_model_query_names.json"


@pytest.mark.parametrize("last", ["", " 7"])
def test_runs_of_six_and_of_seven_columns(tmp_path, last):
    path = tmp_path / "run.txt"
    path.write_text("".join(f"{line}{last}\n" for line in SIX.splitlines()))
    lists = read_lists(path)
    assert lists["9:1"].dids == ("9:10", "9:20") and lists["9:1"].scores == (0.75, 0.5)
    assert lists["9:1"].similarities and set(lists) == {"9:1", "9:2"}


def test_lamras_files_by_any_of_their_names(tmp_path):
    path = write_lamra(tmp_path / "l", [[[0.9, 0.8]], [[0.7, 0.7]]])
    for name in ("query_names", "cand_names", "scores"):
        lists = read_lists(path.with_name(path.name.replace("query_names", name)))
        assert lists["9:2"].dids == ("9:30", "9:10")
        assert lists["9:1"].scores == (0.9, 0.8) and lists["9:1"].similarities
    path.with_name(path.name.replace("query_names", "scores")).unlink()
    assert read_lists(path)["9:1"].scores == (-1.0, -2.0)


def test_distances_keep_their_order(tmp_path):
    """With the global pool LamRA's scores are distances: the smallest is the best."""
    lists = read_lists(write_lamra(tmp_path / "l", [[[0.2, 0.8]], [[0.1, 0.1]]]))
    assert lists["9:1"].dids == ("9:10", "9:20") and lists["9:1"].scores == (-0.2, -0.8)
    assert not lists["9:1"].similarities
    path = tmp_path / "run.trec"
    path.write_text("1:1 Q0 1:1 1 5 t\n1:1 Q0 1:2 2 7 t\n1:1 Q0 1:3 3 6 t\n")
    assert read_lists(path)["1:1"].scores == (-1.0, -2.0, -3.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("9:1 Q0 9:10 1 0.5\n", "run.trec:1: `qid Q0 did rank score tag` is needed"),
        ("9:1 Q0 9:10 first 0.5 t\n", "run.trec:1"),
        ("9:1 Q0 9:10 1 0.5 t\n9:1 Q0 9:20 1 0.4 t\n", "run.trec:2: query 9:1 has rank 1 twice"),
        ("9:1 Q0 9:10 1 0.5 t\n9:1 Q0 9:10 2 0.4 t\n", "9:10 stands twice"),
        ("9:1 Q0 9:10 1 nan t\n", "finite"),
        ("\n", "no candidates"),
    ],
)
def test_damaged_runs_are_refused_with_their_line(tmp_path, text, message):
    path = tmp_path / "run.trec"
    path.write_text(text)
    with pytest.raises(EvalError, match=message):
        read_lists(path)


def test_damaged_json_is_refused(tmp_path):
    path = write_lamra(tmp_path / "l", [[[0.2, 0.8]]])
    with pytest.raises(EvalError, match="2 queries, 2 lists of candidates and 1 of scores"):
        read_lists(path)
    write_lamra(tmp_path / "l", [[[0.2]], [[0.1, 0.1]]])
    with pytest.raises(EvalError, match="a finite score for each of 2"):
        read_lists(path)
    write_lamra(tmp_path / "l", [0.5, 0.5])
    with pytest.raises(EvalError, match="cannot read"):
        read_lists(path)
    dids = path.with_name(path.name.replace("query_names", "cand_names"))
    write_lamra(tmp_path / "l", [[[0.2, 0.8]], [[]]])
    dids.write_text('[["9:10", "9:20"], []]')
    with pytest.raises(EvalError, match="query 9:2: the list is empty"):
        read_lists(path)
    path.write_text("{")
    with pytest.raises(EvalError, match="cannot read"):
        read_lists(path)
    other = tmp_path / "other.json"
    other.write_text("[]")
    with pytest.raises(EvalError, match="LamRA's files end in"):
        read_lists(other)


def test_a_folder_gives_each_cell_its_file(tmp_path):
    for name in (
        "mbeir_cirr_task7_single_pool_test_k50_run.txt",
        "mbeir_cirr_task7_union_pool_test_k50_run.txt",
        "mbeir_cirr_task7_single_pool_val_k50_run.txt",
        "mbeir_fashioniq_task7_union_pool_test_k50_run.txt",
        "oven_task6_test/first-stage.trec",
        "oven_task6_test/first-stage-global.trec",
        "oven_task6_test/fast-k50.trec",
        "notes.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(SIX)

    def found(*asked):
        return find_file(tmp_path, *asked).name

    assert found("cirr_task7", "test", "local").startswith("mbeir_cirr_task7_single_pool_test")
    assert found("cirr_task7", "test", "global").startswith("mbeir_cirr_task7_union_pool_test")
    assert found("cirr_task7", "val", "local").startswith("mbeir_cirr_task7_single_pool_val")
    assert found("fashioniq_task7", "test", "local").startswith("mbeir_fashioniq_task7_union")
    assert found("oven_task6", "test", "local") == "first-stage.trec"
    assert found("oven_task6", "test", "global") == "first-stage-global.trec"
    write_lamra(tmp_path, [[[0.2, 0.8]], [[0.1, 0.1]]], "nights_task4")
    assert found("nights_task4", "test", "local").endswith("query_names.json")
    with pytest.raises(EvalError, match="has 0 files of candidates for edis_task2"):
        found("edis_task2", "test", "local")
    (tmp_path / "cirr_task7_test_other_single.run").write_text(SIX)
    with pytest.raises(EvalError, match="has 2 files of candidates for cirr_task7"):
        found("cirr_task7", "test", "local")
    with pytest.raises(EvalError, match="neither a file nor a folder"):
        find_file(tmp_path / "nowhere", "cirr_task7", "test", "local")


def test_queries_without_candidates_are_refused(tmp_path):
    path = tmp_path / "run.trec"
    path.write_text(SIX)
    cell = Cell("toy", "test", tmp_path, {})
    assert list(lists_of(path, cell, "local", ["9:2", "9:4"], ["9:2"])) == ["9:2"]
    with pytest.raises(EvalError, match="no candidates for 1 of 2 queries of toy, 9:3 among them"):
        lists_of(path, cell, "local", ["9:1", "9:3"], ["9:1", "9:3"])
