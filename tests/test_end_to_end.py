"""The main job on real input: the shipped checkpoint, real pictures, the command line, examples."""

from __future__ import annotations

import json
import random
import runpy
import sys
from pathlib import Path

import pytest
from rerank_doubles import check
from typer.testing import CliRunner

from retrv_r1 import Reranker
from retrv_r1.command.cli import app
from retrv_r1.model.checkpoint import SHIPPED

pytest_plugins = ("sglang_fixtures",)

EXAMPLES = Path(__file__).parents[1] / "examples"
DEMO = EXAMPLES / "demo"
PRINTED = {
    "rank_pictures": "1. 0.827  police-officer-dark-skin-tone.png",
    "rank_batch": "something with cheese: pizza.png 0.72",
    "rounded_weights": "pictures encoded: 0, found on disk: 51",
    "sglang_server": "violin.png",
    "train_grpo": "step 3: reward",
}


@pytest.fixture(scope="module")
def reranker() -> Reranker:
    return Reranker.from_pretrained("tiny")


@pytest.mark.parametrize("mode", ["reason", "fast"])
@pytest.mark.parametrize("reading", ["compressed", "full"])
def test_demo_pictures_are_ranked(reranker, mode, reading):
    pictures = sorted(DEMO.glob("*.png"))
    results = reranker.rank("a red apple", pictures, mode=mode, reading=reading)
    check(results, len(pictures))
    assert bool(results.reasoning) == (mode == "reason")
    rows = 3 if reading == "compressed" else 19
    assert results.tokens.candidates == rows * len(pictures)


def test_short_lists_are_ranked_above_chance(reranker):
    """50 lists of 5 in a style never trained on: a blind ranking has 10 right, 17 with luck."""
    pictures = sorted(DEMO.glob("*.png"))
    rng, right = random.Random(0), 0
    for picture in pictures:
        others = [other for other in pictures if other != picture]
        candidates = [*rng.sample(others, 4), picture]
        rng.shuffle(candidates)
        name = picture.stem.replace("-", " ")
        right += reranker.rank(name, candidates, mode="fast")[0].item.image == picture
    assert right >= 18


def test_command_line(tmp_path):
    page = tmp_path / "out.html"
    arguments = ["rerank", "a dog", str(DEMO), "--top", "3", "--json", "--html", str(page)]
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 0, outcome.output
    response = json.loads(outcome.stdout)
    assert len(response["results"]) == 3
    assert response["retrv"]["answer"] == response["results"][0]["index"]
    assert "data:image/" in page.read_text()


def test_the_record_is_shipped():
    records = SHIPPED / "tiny" / "training"
    named = {path.stem for path in records.glob("*.json")}
    assert named == {path.stem for path in records.glob("*.jsonl")} >= {"embed", "words", "sft"}
    assert all(json.loads(path.read_text())["data_hash"] for path in records.glob("*.json"))
    size = sum(path.stat().st_size for path in (SHIPPED / "tiny").rglob("*") if path.is_file())
    assert size < 25e6


def test_every_example_is_run():
    assert sorted(PRINTED) == sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_prints_its_ranking(name, capsys, monkeypatch, request):
    if name == "sglang_server":
        request.getfixturevalue("sglang_python")
    if name == "rounded_weights":
        pytest.importorskip("diskcache")
    if name == "train_grpo":
        pytest.importorskip("trl")
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert PRINTED[name] in capsys.readouterr().out


def test_the_sglang_example_says_what_to_install(monkeypatch):
    monkeypatch.setattr("retrv_engine.sglang.process.CPU_PYTHON", Path("nowhere"))
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "site-packages" not in entry])
    with pytest.raises(SystemExit, match=r"SGLang is not installed: make sglang-cpu"):
        runpy.run_path(str(EXAMPLES / "sglang_server.py"), run_name="__main__")
