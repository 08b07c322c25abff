"""Evaluation with stand-ins for both stages: recalls by hand, resuming, files, errors."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import asdict
from itertools import pairwise

import pytest
import torch
from eval_fixtures import QUERIES, evaluate, row_of, write_cell
from rich.console import Console

from retrv_r1.eval import EvalError, calibrate, fit_temperature, render
from retrv_r1.eval.cells import choose, prompt_order
from retrv_r1.eval.trec import falling
from retrv_r1.model.calibration import ModeCalibration
from retrv_r1.types import CheckpointError

pytest_plugins = ("eval_fixtures",)


def without_seconds(report):
    return json.loads(report.to_json(), object_hook=lambda o: {**o, "seconds": 0})


def test_recalls_are_those_computed_by_hand(dataset, model_files, ranker):
    report = evaluate(dataset, model_files)
    third = pytest.approx(1 / 3)
    two_thirds = pytest.approx(2 / 3)
    first = row_of(report, "first stage", None)["recall"]
    assert first == {"1": third, "2": third, "5": two_thirds, "6": 1, "10": 1}
    # Of {2, 0}, {5, 4}, {0, 1} only the last holds a relevant one.
    assert row_of(report, "fast", 2)["recall"] == {"1": third, "5": third, "10": third}
    assert row_of(report, "reason", 2)["recall"] == {"1": 0, "5": third, "10": third}
    assert row_of(report, "fast", 6)["recall"] == {"1": two_thirds, "5": 1, "10": 1}
    assert row_of(report, "reason", 6)["recall"] == {"1": third, "5": two_thirds, "10": 1}
    cell = report["parts"][0]["cells"][0]
    assert (cell["shape"], cell["queries"], cell["pool"]) == ("t → t", 3, 6)
    assert report["parts"][0]["mean"][0]["recall"] == first


def test_costs_and_checks(dataset, model_files, ranker):
    report = evaluate(dataset, model_files)
    cost = row_of(report, "reason", 6)["cost"]
    assert (cost["rows_per_candidate"], cost["inspections"], cost["inspected_rows"]) == (3, 1, 5)
    assert row_of(report, "fast, full tokens", 2)["cost"]["rows_per_candidate"] == 8
    assert row_of(report, "fast", 6)["well_formed"] == pytest.approx(2 / 3)
    assert report["checks"] == {
        "lists": 24,
        "answer_is_rank_1": 24,
        "scores_in_0_1_never_rising": 24,
        "well_formed": 16,
    }


def test_differences_are_paired(dataset, model_files, ranker):
    report = evaluate(dataset, model_files, k=(6,))
    rows = report["parts"][0]["differences"]
    by = {(row["system"], row["baseline"]): row["recall"]["1"] for row in rows}
    assert len(by) == 6
    assert by["fast", "first stage"]["mean"] == pytest.approx(1 / 3)
    assert by["fast", "first stage"]["low"] == 0
    assert by["fast", "fast, full tokens"] == {"mean": 0, "low": 0, "high": 0}


def test_prompts_do_not_leak_the_first_stages_order(dataset, model_files, ranker):
    evaluate(dataset, model_files)
    asked = list(ranker.asked)
    evaluate(dataset, model_files)
    assert asked == ranker.asked[len(asked) :]
    assert {phrase for *_, phrase in asked} == {"the first phrasing"}
    by_system = {}
    for qid, mode, reading, texts, _ in asked:
        by_system.setdefault((mode, reading, len(texts)), {})[qid] = texts
    assert by_system["fast", "compressed", 6] == by_system["reason", "full", 6]
    places = [prompt_order("abcdefgh", f"9:{i}", 0).index("a") for i in range(400)]
    assert abs(sum(places) / len(places) - 3.5) < 0.4
    assert prompt_order("abcdefgh", "9:1", 0) != prompt_order("abcdefgh", "9:1", 1)


def test_a_killed_run_goes_on(dataset, model_files, ranker, tmp_path):
    whole = evaluate(dataset, model_files)
    calls = len(ranker.asked)
    assert calls == 24
    ranker.asked.clear()
    ranker.dies_at = 5
    with pytest.raises(KeyboardInterrupt):
        evaluate(dataset, model_files, out=tmp_path / "out")
    unfinished = max((tmp_path / "out/outcomes").rglob("*.jsonl"), key=lambda p: p.stat().st_mtime)
    with unfinished.open("ab") as handle:
        handle.write(b'{"qid": "9:3", "rank')
    ranker.dies_at = None
    report = evaluate(dataset, model_files, out=tmp_path / "out")
    assert len(ranker.asked) == calls
    whole["chart"] = report.get("chart")
    assert without_seconds(report) == without_seconds(whole)


def test_a_finished_run_is_read_from_disk(dataset, model_files, ranker, tmp_path, monkeypatch):
    report = evaluate(dataset, model_files, out=tmp_path / "out")

    def load(*_, **__):
        raise AssertionError("nothing has to be loaded")

    monkeypatch.setattr("retrv_r1.eval.models.FirstStage.from_pretrained", load)
    monkeypatch.setattr("retrv_r1.eval.models.Reranker.from_pretrained", load)
    assert evaluate(dataset, model_files, out=tmp_path / "out") == report
    assert evaluate(dataset, model_files, out=tmp_path / "out", limit=2)["settings"]["limit"] == 2


@pytest.mark.parametrize("changed", ["weights", "embedder", "data", "seed"])
def test_what_changes_the_outcome_starts_anew(dataset, model_files, ranker, tmp_path, changed):
    evaluate(dataset, model_files, out=tmp_path / "out")
    options = {}
    if changed == "weights":
        (model_files / "model.safetensors").write_text("other")
    elif changed == "embedder":
        (model_files / "embedder/config.json").write_text("{}")
    elif changed == "data":
        (dataset / "manifest.json").write_text("{}")
    else:
        options["seed"] = 1
    evaluate(dataset, model_files, out=tmp_path / "out", **options)
    assert len(ranker.asked) == 48


def test_a_larger_limit_adds_to_a_smaller_one(dataset, model_files, ranker, tmp_path):
    small = evaluate(dataset, model_files, out=tmp_path / "out", limit=1)
    assert small["parts"][0]["cells"][0]["queries"] == 1
    evaluate(dataset, model_files, out=tmp_path / "out", limit=3)
    assert len(ranker.asked) == 24


def test_files_and_tables(dataset, model_files, ranker, tmp_path):
    ranker.scores = [0.5] * 6
    report = evaluate(dataset, model_files, out=tmp_path / "out")
    out = tmp_path / "out"
    assert json.loads((out / "report.json").read_text()) == report
    page = (out / "report.md").read_text()
    assert page == report.to_markdown()
    for part in ("# model on set", "chart.png", "## Summary", "| toy: t → t | 3 | 6 | 100.0 |"):
        assert part in page
    assert "66.7 / 100.0 / –" in page
    assert "33.3 / – / –" in page  # of two candidates
    assert str(tmp_path) not in page
    assert (out / "chart.png").read_bytes().startswith(b"\x89PNG")
    console = Console(record=True, width=240, file=io.StringIO())
    render(report, console)
    assert "66.7 / 100.0 / –" in console.export_text()


def test_run_files_give_the_same_recall_for_tied_scores(dataset, model_files, ranker, tmp_path):
    import ir_measures

    ranker.scores = [0.5, 0.5, 0.5, 0.0, 0.0, 0.0]
    report = evaluate(dataset, model_files, out=tmp_path / "out")
    folder = tmp_path / "out/runs/toy_test"
    assert len(list(folder.iterdir())) == 9
    qrels = {qid: {f"9:{c}": 1 for c in known} for qid, (_, known) in QUERIES.items()}
    for system, name, k in [("fast", "fast-k6", 6), ("first stage", "first-stage", None)]:
        ranking = list(ir_measures.read_trec_run(str(folder / f"{name}.trec")))
        found = ir_measures.calc_aggregate(
            [ir_measures.Success @ 1, ir_measures.Success @ 5], qrels, ranking
        )
        recall = row_of(report, system, k)["recall"]
        assert found[ir_measures.Success @ 1] == pytest.approx(recall["1"])
        assert found[ir_measures.Success @ 5] == pytest.approx(recall["5"])
    line = (folder / "fast-k6.trec").read_text().split("\n")[0].split()
    assert (line[1], line[3], line[5]) == ("Q0", "1", "fast-k6")
    strict = falling([0.5, 0.5, 0.0, 0.0])
    assert all(low < high for high, low in pairwise(strict))


def test_without_matplotlib_the_report_says_so(dataset, model_files, ranker, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report = evaluate(dataset, model_files, out=tmp_path / "out")
    assert "matplotlib is not installed" in report.to_markdown()
    assert "chart" not in report


def test_parts_of_the_pictograph_set(tmp_path, model_files, ranker):
    for dataset, split in [
        ("pictographs_t2t", "test"),
        ("pictographs_unseen_t2t", "test"),
        ("pictographs_composition_t2t", "test"),
        ("pictographs_t2t", "val"),
        ("pictographs_t2t", "train"),
    ]:
        write_cell(tmp_path, dataset, split)
    names = [cell.dataset for cell in choose(tmp_path, "all")]
    assert names == ["pictographs_t2t", "pictographs_composition_t2t", "pictographs_unseen_t2t"]
    assert [cell.split for cell in choose(tmp_path, "val")] == ["val"]
    report = evaluate(tmp_path, model_files, split="unseen", k=(3,))
    assert [part["part"] for part in report["parts"]] == ["unseen"]


def test_options_that_cannot_be(dataset, model_files, ranker, tmp_path, monkeypatch):
    for options, message in [
        ({"split": "unseen"}, r"'unseen': choose from test \(1 cells\)"),
        ({"split": "half"}, "unknown split"),
        ({"k": ()}, "k must"),
        ({"modes": ("slow",)}, "modes must"),
        ({"limit": 0}, "limit must"),
    ]:
        with pytest.raises(EvalError, match=message):
            evaluate(dataset, model_files, **options)
    (model_files / "embedder/config.json").unlink()
    with pytest.raises(CheckpointError, match="no first stage"):
        evaluate(dataset, model_files)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        evaluate(dataset, tmp_path / "nowhere")
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    with pytest.raises(EvalError, match=r"pip install .*\[eval\]'"):
        evaluate(dataset, model_files)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([0.1, 0.2, 0.0, 0.0, 0.0, 0.0], "rise"),
        ([1.2, 0.2, 0.0, 0.0, 0.0, 0.0], "outside"),
        ([0.5, float("nan"), 0.0, 0.0, 0.0, 0.0], "outside"),
        ([0.5], "permutation"),
    ],
)
def test_an_invalid_ranking_stops_it(dataset, model_files, ranker, scores, message):
    ranker.scores = scores
    with pytest.raises(EvalError, match=message):
        evaluate(dataset, model_files)


def test_calibration_writes_the_temperature(tmp_path, model_files, ranker, monkeypatch):
    root = tmp_path / "set"
    write_cell(root, split="val")
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -2.0])
    ranker.scores = (logits / 2.0).softmax(-1).tolist()
    whole = dict(k=6, without_answer=0.0)
    monkeypatch.setattr("retrv_r1.eval.calibration_lists.SHORTEST", 6)
    with pytest.raises(EvalError, match="reason mode: there is no best temperature"):
        calibrate(model_files, root, **whole)  # which is right less often than chance
    ranker.reverses = False
    # All rank c0 … c5 for every query: relevant are logits 1, 0, and 0 with 5. The same scores of
    # reason mode were made by a temperature of 3, so its logits are larger.
    kept = tmp_path / "kept.json"  # as caches of the hub keep files, behind links
    (model_files / "config.json").rename(kept)
    (model_files / "config.json").symlink_to(kept)
    fitted = calibrate(model_files, [root], **whole)
    fast, reason = fitted["fast"], fitted["reason"]
    for one, before in ((fast, 2.0), (reason, 3.0)):
        expected = fit_temperature([logits * before / 2.0] * 3, [[1], [0], [0, 5]])
        assert one.calibration.temperature == pytest.approx(expected, rel=1e-4)
        assert one.calibration == ModeCalibration(one.calibration.temperature)
        assert (one.before.temperature, one.lists) == (before, 3)
        assert (one.accuracy, one.without_answer) == (pytest.approx(2 / 3), 0)
        assert one.after_fit.nll <= one.before_fit.nll and one.after_fit.auroc is None
    temperature = fast.calibration.temperature
    assert reason.calibration.temperature == pytest.approx(1.5 * temperature, rel=1e-4)
    assert (model_files / "config.json").is_symlink()
    written = json.loads(kept.read_text())
    # In the place of the older field, which the files had.
    modes = {"fast": asdict(fast.calibration), "reason": asdict(reason.calibration)}
    assert written == {"model_type": "x", "calibration": modes}
    assert sorted(path.name for path in model_files.iterdir()) == ["config.json", "embedder"]
    with pytest.raises(EvalError, match="window"):
        calibrate(model_files, root, k=51)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        calibrate(tmp_path / "nowhere", root)
