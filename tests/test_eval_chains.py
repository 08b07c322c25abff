"""What a report says of chains of thought and of calibration, on chains made by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from eval_fixtures import QUERIES, evaluate, write_cell, write_lines

from retrv_r1.data import mbeir
from retrv_r1.eval import EvalError
from retrv_r1.eval.calibration_lists import calibration_lists
from retrv_r1.eval.chains import ChainCounts, Count, count_chains
from retrv_r1.eval.names import Names
from retrv_r1.eval.outcomes import Outcome
from retrv_r1.eval.settings import EvalSettings
from retrv_r1.model.chains import Chain

pytest_plugins = ["eval_fixtures"]

ARROW = {"name": "arrow", "details": {"fill": "filled", "direction": "left"}}
METADATA = {
    "9:0": {"name": "Guitar", "aliases": ["acoustic-guitar"]},
    "9:1": {"name": "violin", "details": {"fill": "outline"}},
    "9:2": {"name": "arrow", "details": {"fill": "outline", "direction": "left"}},
    "9:3": ARROW,
    "9:4": {"name": "arrow head"},
    "9:5": {"name": None, "aliases": None, "details": None},
}


@pytest.fixture
def named(tmp_path):
    """Names and the task; nothing is known of candidate 5 but its text."""
    write_cell(tmp_path)
    rows = [{"did": did, **row} for did, row in METADATA.items()]
    write_lines(tmp_path / "metadata.jsonl", rows)
    about = {"target": {"name": "violin"}, "source": "fiddle"}
    write_lines(tmp_path / "query_metadata.jsonl", [{"qid": "9:1", **about}])
    return mbeir.load(tmp_path, "toy", "test"), Names(tmp_path)


def outcome(chain: Chain | str, qid: str = "9:1", **values) -> Outcome:
    said = chain if isinstance(chain, str) else chain.text()
    listed = tuple(f"9:{k}" for k in (3, 2, 1, 0, 5, 4))
    return Outcome(qid, listed, (1 / 6,) * 6, listed[0], reasoning=said, listed=listed, **values)


RIGHT = Chain(
    "violin", ((2, "violin"), (3, "acoustic guitar"), (4, "c5")), ((2, "violin outline"),), None
)


@pytest.mark.parametrize(
    ("chain", "ideal", "names", "statements", "whole"),
    [
        (RIGHT, 1, (3, 3), (1, 1), 1),
        (Chain("the fiddle"), 1, (0, 0), (0, 0), 1),
        (Chain("2 0 1 3 4 5"), 1, (0, 0), (0, 0), 1),  # the query's own words
        (Chain("viola"), 0, (0, 0), (0, 0), 1),
        (Chain("violin", ((2, "viola"), (3, "violin"), (9, "x"))), 1, (0, 3), (0, 0), 1),
        (Chain("violin", (), ((2, "viola"), (77, "violin"))), 1, (0, 0), (0, 2), 1),
        # Alone an arrow is an arrow; beside another arrow it has to be said which.
        (Chain("a", (), ((0, "arrow"),)), 0, (0, 0), (1, 1), 1),
        (Chain("a", ((1, "arrow"),), ((0, "arrow"),)), 0, (1, 1), (0, 1), 1),
        (Chain("a", ((1, "arrow"),), ((0, "arrow left"),)), 0, (1, 1), (0, 1), 1),
        (Chain("a", ((1, "arrow"),), ((0, "arrow filled"),)), 0, (1, 1), (1, 1), 1),
        (Chain("a", (), ((0, "filled left arrow"), (1, "arrow outline"))), 0, (0, 0), (2, 2), 1),
        (Chain("a", (), ((0, "outline arrow"),)), 0, (0, 0), (0, 1), 1),
        # A close one without the detail is reason enough to say it; one that is not close is none.
        (Chain("a", ((5, "arrow head"),), ((0, "arrow"),)), 0, (1, 1), (0, 1), 1),
        (Chain("a", ((5, "arrow head"),), ((0, "arrow left filled"),)), 0, (1, 1), (1, 1), 1),
        (Chain("a", ((2, "violin"),), ((0, "arrow"),)), 0, (1, 1), (1, 1), 1),
        ("wanted: violin. inspect [3] violin; so [3]", 0, (0, 0), (1, 1), 0),
        ("", 0, (0, 0), (0, 0), 0),
    ],
)
def test_every_statement_is_checked(named, chain, ideal, names, statements, whole):
    task, known = named
    found = count_chains(task, known, [outcome(chain)])
    assert found.text_ideals == Count(ideal, 1) and found.picture_ideals == Count()
    assert (found.names, found.statements) == (Count(*names), Count(*statements))
    assert found.whole == Count(whole, 1)


def test_an_alias_of_another_candidate_makes_it_no_closer(named, tmp_path):
    """Training knows others by their main names; an alias of the candidate itself may be said."""
    rows = [{"did": "9:3", **ARROW, "aliases": ["dart"]}]
    rows += [{"did": "9:4", "name": "pointer", "aliases": ["arrow head"]}]
    write_lines(tmp_path / "metadata.jsonl", rows)
    for said in ("arrow", "dart"):
        chain = Chain("a", ((5, "pointer"),), ((0, said),))
        assert count_chains(named[0], Names(tmp_path), [outcome(chain)]).statements == Count(1, 1)


def test_an_ideal_says_the_detail_that_is_asked_for(tmp_path):
    long = "a picture of a person in a motorized wheelchair who is going right, dark skin"
    write_lines(
        tmp_path / "query_metadata.jsonl",
        [
            {
                "qid": "9:1",
                "target": {"name": "star"},
                "detail": {"kind": "fill", "value": "filled"},
            },
            {"qid": "9:2", "detail": {"kind": "skin", "value": "dark"}},
        ],
    )
    names = Names(tmp_path)
    changed, named = (
        mbeir.Query(qid, text, image, "text", 0, ("9:0",), ())
        for qid, text, image in (("9:1", "make it solid", "a.png"), ("9:2", long, None))
    )
    assert names.of_query(changed) == {"make it solid", "star", "star filled"}
    cut = "person in motorized wheelchair who is going"
    assert names.of_query(named) == {f"{cut} right", f"{cut} dark"}


def test_counts_add_up_and_come_back(named):
    task, known = named
    some = [
        outcome(RIGHT, inspected=("9:1",)),
        outcome(RIGHT, refused=1),
        outcome(Chain("x"), well_formed=False, inspected=("9:1", "9:2")),
    ]
    found = count_chains(task, known, some)
    assert (found.unaided, found.inspections) == (Count(1, 3), Count(3, 3))
    assert found.text_ideals == Count(2, 3) and found.text_ideals.share == 2 / 3
    assert ChainCounts.from_row(json.loads(json.dumps(found.row()))) == found
    assert found + ChainCounts() == found and ChainCounts().names.share is None


def test_nothing_is_counted_of_which_nothing_is_known(named, tmp_path):
    task, _ = named
    bare = tmp_path / "bare"
    write_cell(bare)
    found = count_chains(task, Names(bare), [outcome(Chain("x", ((0, "c3"), (1, "arrow"))))])
    assert found.names == Count(1, 2), "texts are names"
    assert found.text_ideals == Count(0, 1)
    (bare / "metadata.jsonl").write_text("[1]\n")
    with pytest.raises(mbeir.MBEIRError, match="no object with 'did'"):
        Names(bare)


def test_the_report_says_what_chains_say(dataset, model_files, ranker, tmp_path):
    ranker.reasoning = "ideal: 2 0 1 3 4 5. close: [1] c9. inspect [1] c9;"
    report = evaluate(dataset, model_files, out=tmp_path / "out")
    row = next(r for r in report["parts"][0]["mean"] if r["system"] == "reason")
    assert row["chains"]["text_ideals"] == {"right": 1, "of": 3, "share": 1 / 3}
    assert row["chains"]["names"] == {"right": 0, "of": 3, "share": 0.0}
    assert row["chains"]["inspections"]["share"] == 1
    assert not any("chains" in r for r in report["parts"][0]["mean"] if r["system"] == "fast")
    text = (tmp_path / "out/report.md").read_text()
    assert "Chains of thought" in text and "33.3 of 3" in text


def test_calibration_is_reported_on_lists_with_and_without_the_answer(
    dataset, model_files, ranker, tmp_path, monkeypatch
):
    monkeypatch.setattr("retrv_r1.eval.calibration_lists.SHORTEST", 2)
    options = dict(k=(6,), calibration=True, without_answer=0.5, full_tokens=False)
    ranker.none = 0.25
    report = evaluate(dataset, model_files, out=tmp_path / "out", **options)
    rows = {row["system"]: row for row in report["calibration"]}
    assert set(rows) == {"fast", "reason"}
    fast = rows["fast"]
    assert fast["lists"] == 3 and 0 < fast["without_answer"] < 3
    assert fast["confidence"] == 0.5 and fast["auroc"] == 0.5
    assert fast["brier"] == pytest.approx(0.25)  # of a half, right or wrong
    assert sum(one["lists"] for one in fast["bins"]) == 3
    asked = [texts for qid, mode, _, texts, _ in ranker.asked if mode == "fast"]
    lengths = sorted(map(len, asked))
    assert lengths[-3:] == [6, 6, 6] and all(2 <= n <= 6 for n in lengths)
    assert (tmp_path / "out/reliability.png").is_file()
    assert "reliability.png" in (tmp_path / "out/report.md").read_text()
    again = evaluate(dataset, model_files, out=tmp_path / "out", **options)
    assert again == report and len(ranker.asked) == 12, "finished lists are only read"


def test_lists_hold_what_the_first_stage_finds_and_nothing_else():
    settings = EvalSettings(k=(8,), without_answer=0.3)
    pool = [f"d{n}" for n in range(20)]
    queries = [SimpleNamespace(qid=f"q{n}", positives=[f"d{n % 12}"]) for n in range(300)]
    work = SimpleNamespace(queries=queries)
    first = [Outcome(query.qid, tuple(pool), (0.0,) * 20) for query in queries]
    lists, sizes, answered = calibration_lists(work, first, settings), set(), 0
    for query in queries:
        found = lists.get(query.qid, [])
        assert found == sorted(set(found) & set(pool[:8]), key=pool.index)
        sizes.add(len(found))
        (known,) = query.positives
        if found and known in pool[:8]:
            answered += known in found
        else:  # of what is not found only lists without it
            assert known not in found
    assert sizes == {0, 5, 6, 7, 8}
    assert 0.6 < answered / (300 * 8 / 12) < 0.8
    assert lists == calibration_lists(work, first, settings)
    best = [found for found in lists.values() if found == pool[: len(found)] and len(found) < 8]
    assert best, "some are what a search would give"


def test_lists_without_the_answer_have_no_relevant_candidate(dataset, model_files, ranker):
    options = dict(k=(6,), calibration=True, full_tokens=False, modes=("fast",))
    answered = {}
    for share in (0.0, 0.999):
        ranker.asked.clear()
        evaluate(dataset, model_files, without_answer=share, **options)
        for qid, *_, texts, _ in ranker.asked[len(QUERIES) :]:
            relevant = {f"c{c}" for c in QUERIES[qid][1]}
            answered.setdefault(share, []).append(bool(relevant & set(texts)))
    assert answered == {0.0: [True] * 3, 0.999: [False] * 3}
    with pytest.raises(EvalError, match="without_answer"):
        evaluate(dataset, model_files, without_answer=1.0, **options)
    with pytest.raises(EvalError, match="one window"):
        evaluate(dataset, model_files, **options | dict(k=(6, 60)))
