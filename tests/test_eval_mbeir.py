"""A directory with the release's layout and quirks: all cells, against an independent recall."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mbeir_mimic import CELLS, Mimic, score
from typer.testing import CliRunner

from retrv_r1.command.cli import app
from retrv_r1.eval import EvalError, run

DEMO = Path(__file__).parents[1] / "examples/demo"
FAST = {"k": (10,), "modes": ("fast",), "full_tokens": False}


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    root = tmp_path_factory.mktemp("mbeir")
    Mimic(DEMO, root, tame=set()).build()
    return root


@pytest.fixture(scope="module")
def evaluated(released, tmp_path_factory):
    """The report over both pools, and its folder."""
    out = tmp_path_factory.mktemp("out")
    return run(released, pool="both", out=out, **FAST), out


def test_every_number_is_that_of_an_independent_recall(released, evaluated):
    """16 cells, both pools, two systems, three cutoffs, and the benchmark's average."""
    report, out = evaluated
    assert report["bad_cells"] == []
    runs = {"first stage": "first-stage", "fast": "fast-k10"}
    found = {
        (cell["cell"], runs[row["system"]] + "-global" * (part["part"] == "test, global pool")): (
            cell["queries"],
            *(round(row["recall"][str(k)], 4) for k in (1, 5, 10)),
        )
        for part in report["parts"]
        for cell in part["cells"]
        for row in cell["results"]
    }
    expected = {
        (row["cell"], row["run"]): tuple(row[key] for key in ("queries", "R@1", "R@5", "R@10"))
        for row in score(released, out / "runs")
        if "cell" in row
    }
    averages = {
        runs[row["system"]] + "-global" * (part["part"] == "test, global pool"): row["mbeir"]
        for part in report["parts"]
        for row in part["mean"]
    }
    assert averages == pytest.approx(
        {
            row["run"]: row["M-BEIR average"]
            for row in score(released, out / "runs")
            if "M-BEIR average" in row
        },
        abs=1e-4,
    )
    assert len(expected) == 16 * 2 * 2
    assert found == expected
    assert sum(values[1:] != (0, 0, 0) for values in found.values()) > 32
    local, union = ({cell["cell"]: cell for cell in part["cells"]} for part in report["parts"])
    assert set(local) == set(CELLS)
    outside = {name: cell["counts"]["positives_outside_the_pool"] for name, cell in local.items()}
    assert {name for name, count in outside.items() if count} == {
        "oven_task6",
        "oven_task8",
        "infoseek_task6",
        "infoseek_task8",
    }
    assert not any(cell["counts"]["positives_outside_the_pool"] for cell in union.values())
    assert any("27 positives are in other pools" in note for note in report["notes"])
    assert len(list((out / "vectors").glob("*.npy"))) == 17  # 16 local pools, one union


def as_lamra(path, folder, cell):
    """Writes a run as the three files of LamRA, with distances for scores."""
    lists = {}
    for line in path.read_text().splitlines():
        qid, _, did, _, value, _ = line.split()
        lists.setdefault(qid, []).append((did, 1 - float(value)))
    parts = {
        "query_names": list(lists),
        "cand_names": [[did for did, _ in found] for found in lists.values()],
        "scores": [[[value for _, value in found]] for found in lists.values()],
    }
    for name, value in parts.items():
        (folder / f"mbeir_{cell}_test_LamRA-Ret_{name}.json").write_text(json.dumps(value))


@pytest.mark.parametrize("kind", ["trec", "uniir", "lamra"])
@pytest.mark.parametrize("pool", ["local", "global"])
def test_lists_of_another_first_stage_have_their_recall(released, evaluated, tmp_path, kind, pool):
    cells = ("cirr_task7", "fashioniq_task7", "oven_task6")
    ending, name = ("-global", "union") if pool == "global" else ("", "single")
    for cell in cells:
        path = evaluated[1] / f"runs/{cell}_test/first-stage{ending}.trec"
        if kind == "lamra":
            as_lamra(path, tmp_path, cell)
            continue
        last = f" {cell[-1]}" if kind == "uniir" else ""
        lines = [f"{line}{last}\n" for line in path.read_text().splitlines()]
        (tmp_path / f"mbeir_{cell}_{name}_pool_test_k50_run.txt").write_text("".join(lines))
    report = run(released, pool=pool, cells=cells, candidates=str(tmp_path), **FAST)
    place = {"local": 0, "global": 1}[pool]
    before = {cell["cell"]: cell["results"] for cell in evaluated[0]["parts"][place]["cells"]}
    (part,) = report["parts"]
    assert {cell["cell"] for cell in part["cells"]} == set(cells)
    for cell in part["cells"]:
        for now, then in zip(cell["results"], before[cell["cell"]], strict=True):
            assert (now["system"], now["recall"]) == (then["system"], then["recall"])


def invoke(*arguments):
    given = ["eval", *map(str, arguments), "--k", "2", "--mode", "fast", "--no-full-tokens"]
    return CliRunner().invoke(app, [*given, "--json"])


def test_a_damaged_cell_costs_only_itself(released):
    path = released / "query/test/mbeir_oven_task6_test.jsonl"
    whole = path.read_text()
    path.write_text(whole.replace('"task_id": 6', '"task_id": 5', 2).replace('5"', '6"', 1))
    cells = [f"--cell={name}" for name in ("cirr_task7", "oven_task6", "webqa_task1")]
    try:
        result = invoke(released, *cells, "--limit=2")
    finally:
        path.write_text(whole)
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert [c["cell"] for c in report["parts"][0]["cells"]] == ["webqa_task1", "cirr_task7"]
    (bad,) = report["bad_cells"]
    assert (bad["cell"], bad["split"], bad["pool"]) == ("oven_task6", "test", "local")
    assert bad["error"].startswith("query/test/mbeir_oven_task6_test.jsonl:1: 'task_id' must be")
    assert "not evaluated: oven_task6 (test, local pool): query/test" in result.stderr
    assert any(note.startswith("Not evaluated: oven_task6") for note in report["notes"])


def test_cells_and_pools_can_be_chosen(released):
    with pytest.raises(EvalError, match=r"no cell 'cirr_task6' .* choose from cirr_task7, edis"):
        run(released, cells=["cirr_task6"], **FAST)
    with pytest.raises(EvalError, match="pool must be one of 'local', 'global', 'both'"):
        run(released, pool="regional", **FAST)
    with pytest.raises(EvalError, match=r"union_val.* use --pool local, or --split test"):
        run(released, split="val", pool="global", cells=["cirr_task7"], **FAST)
