"""Lists for training from first-stage runs: which are kept, and what is in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from retrv_r1.command.cli import app
from retrv_r1.data.lists import CandidateList, read_lists

pytest_plugins = ("training_fixtures",)
PICTURES = [f"100:{n}" for n in range(1, 21)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run for text → picture: concept 0 is answered rightly, 1 wrongly, 2 without an answer.

    Concept n is drawn in 100:(n + 1) and 100:(n + 11).
    """
    ranked = {
        "200:1": ["100:1", "100:5", "100:11", "100:6"],
        "200:2": ["100:4", "100:12", "100:2", "100:7", "77:1"],
        "200:3": ["100:4", "100:5", "100:6"],
        "999:1": ["100:1", "100:2"],
    }
    path = tmp_path / "first.trec"
    path.write_text(
        "".join(
            f"{qid} Q0 {did} {rank} {9 - rank} first\n"
            for qid, dids in ranked.items()
            for rank, did in enumerate(dids, 1)
        )
    )
    return path


def made(root: Path, out: Path, *options: str) -> tuple[dict[str, CandidateList], dict]:
    args = ["data", "lists", str(root), str(out), "--cell", "made_t2i", "--json", *options]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    lists = {one.qid: one for one in read_lists(out)} if report["lists"] else {}
    return lists, report


def test_hard_lists_are_those_whose_first_candidate_is_wrong(pictographs, run, tmp_path):
    lists, report = made(pictographs, tmp_path / "l.jsonl", "--candidates", str(run))
    assert lists == {
        "200:2": CandidateList("made_t2i", "train", "200:2", ("100:4", "100:12", "100:7"), "100:12")
    }
    assert report["cells"]["made_t2i"] == {
        "lists": 1,
        "easy, left out": 1,
        "without the answer, left out": 1,
        "not retrieved": 7,
    }


def test_all_lists_have_one_answer_at_most_and_k_candidates(pictographs, run, tmp_path):
    options = ("--candidates", str(run), "--wanted", "all", "--k", "2")
    lists, _ = made(pictographs, tmp_path / "l.jsonl", *options)
    found = {qid: (one.candidates, one.answer) for qid, one in lists.items()}
    assert found == {
        "200:1": (("100:1", "100:5"), "100:1"),
        "200:2": (("100:4", "100:12"), "100:12"),
    }


def test_a_limit_takes_other_queries_by_another_seed(pictographs, run, tmp_path):
    seen = set()
    for seed in range(8):
        options = ("--candidates", str(run), "--wanted", "all", "--limit", "1")
        lists, report = made(pictographs, tmp_path / "l.jsonl", *options, "--seed", str(seed))
        assert report["lists"] == 1
        seen |= set(lists)
    assert seen == {"200:1", "200:2"}


def test_a_checkpoints_first_stage_searches_the_pool(pictographs, tmp_path):
    options = ("--model", "tiny", "--wanted", "all", "--k", "20")
    lists, _ = made(pictographs, tmp_path / "l.jsonl", *options)
    assert len(lists) == 10
    for qid, one in lists.items():
        number = int(qid.split(":")[1])
        right = {f"100:{number}", f"100:{number + 10}"}
        assert one.answer in right
        assert set(one.candidates) == set(PICTURES) - right | {one.answer}


def test_the_answer_may_be_found_where_the_released_lists_name_other_pools(
    pictographs, run, tmp_path
):
    foreign = tmp_path / "foreign"
    for path in pictographs.rglob("*"):
        if path.is_file() and path.suffix in (".jsonl", ".tsv"):
            copy = foreign / path.relative_to(pictographs)
            copy.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text()
            copy.write_text(text.replace('"neg_cand_list": [', '"neg_cand_list": ["55:1", '))
    lists, _ = made(foreign, tmp_path / "l.jsonl", "--candidates", str(run))
    assert set(lists) == {"200:2"}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ([], "--candidates or --model"),
        (["--model", "tiny", "--candidates", "x"], "--candidates or --model"),
        (["--model", "tiny", "--cell", "nothing"], "no cell nothing"),
    ],
)
def test_wrong_options_are_named(pictographs, tmp_path, options, why):
    args = ["data", "lists", str(pictographs), str(tmp_path / "l.jsonl"), *options]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2 and why in result.stderr
