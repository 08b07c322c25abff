"""Golden scores: the lists they are of, how they are kept, and what is held against them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
from cli_doubles import run

from retrv_r1.images import content_hash
from retrv_r1.verify import golden as golden_module
from retrv_r1.verify.comparing import all_passed, compare
from retrv_r1.verify.dialects import FORMS, BadAnswer, value_of
from retrv_r1.verify.engines import compare_engine
from retrv_r1.verify.golden import (
    FILE,
    NoGolden,
    Outcome,
    cases,
    read_golden,
    write_golden,
)
from retrv_r1.verify.lists import SIZES, check_lists, lists_hash, make_list

SMALL = [make_list("picture", "texts", 5), make_list("both", "mixed", 3)]


@pytest.fixture(scope="module")
def shipped(checkpoint, tmp_path_factory):
    """A small checkpoint with golden scores of two lists."""
    folder = tmp_path_factory.mktemp("golden") / "checkpoint"
    shutil.copytree(checkpoint[2], folder)
    assert write_golden(folder, SMALL) == folder / FILE
    return folder


def test_lists_have_every_size_and_form_and_are_always_the_same():
    lists = check_lists()
    assert sorted({len(one.candidates) for one in lists}) == list(SIZES)
    assert len({one.name for one in lists}) == len(lists) == 25
    assert lists_hash(lists) == lists_hash(check_lists()) != lists_hash(lists[:-1])
    for one in lists:
        assert len(set(map(content_hash, one.candidates))) == len(one.candidates)
    longest = lists[-1]
    forms = {(item.text is None, item.image is None) for item in longest.candidates}
    assert forms == {(False, True), (True, False), (False, False)}


def test_a_picture_shows_the_figure_in_its_colour():
    (figure,) = make_list("picture", "pictures", 1).candidates
    assert figure.image.size == (64, 64) and figure.image.getpixel((0, 0)) == (255, 255, 255)
    assert len(figure.image.getcolors()) == 2


def test_the_embedded_engine_gives_the_golden_scores_in_every_batch(shipped):
    golden = read_golden(shipped, SMALL)
    found = list(compare_engine("local", str(shipped), golden, cases(SMALL), batches=(1, 3)))
    assert [(one.batch, one.cache, one.cases) for one in found] == [
        (batch, cache, 4) for batch in (1, 3) for cache in ("cold", "warm")
    ]
    assert all_passed(found) and not any(one.silent for one in found)


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        (lambda one: replace(one, scores=(one.scores[0] + 2e-5, *one.scores[1:])), "worst"),
        (lambda one: replace(one, order=one.order[::-1]), "other_ranks"),
        (lambda one: replace(one, reasoning=f"{one.reasoning}!"), "other_reasoning"),
        (lambda one: replace(one, inspected=(4, *one.inspected)), "other_reasoning"),
    ],
)
def test_every_difference_is_told(shipped, change, failing):
    golden = read_golden(shipped, SMALL)
    name = next(iter(golden))
    found = golden | {name: change(golden[name])}
    told = compare("local", found, golden, cache="cold", batch=1, bound=1e-5)
    same = compare("local", golden, golden, cache="cold", batch=1, bound=0)
    assert same.passed and not told.passed and not all_passed([same, told])
    if failing == "worst":
        assert told.worst == pytest.approx(2e-5) and told.worst_case == name
    else:
        assert told.worst == 0 and getattr(told, failing) == (name,)


def test_missing_candidates_and_unknown_reasoning():
    golden = {"a": Outcome((1, 0), (0.4, 0.6), "because", ())}
    short = compare("x", {"a": Outcome((0,), (0.4,))}, golden, cache="warm", batch=1, bound=1)
    assert short.worst == float("inf") and not short.passed
    unordered = {"a": Outcome(None, (0.4, 0.6))}
    told = compare("x", unordered, golden, cache="warm", batch=1, bound=0)
    assert told.passed and told.silent == 1
    assert not all_passed([])


def test_golden_scores_of_something_else_are_refused(shipped, checkpoint, tmp_path):
    with pytest.raises(NoGolden, match=r"no golden scores .* retrv-r1 verify --write"):
        read_golden(checkpoint[2], SMALL)
    with pytest.raises(NoGolden, match=r"stale, of other lists: run retrv-r1 verify --write"):
        read_golden(shipped, SMALL[:1])
    folder = tmp_path / "changed"
    shutil.copytree(shipped, folder)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(NoGolden, match="of other weights"):
        read_golden(folder, SMALL)
    weights.write_bytes(content)
    assert read_golden(folder, SMALL) == read_golden(shipped, SMALL)
    config = folder / "config.json"
    values = json.loads(config.read_text())
    calibrated = values | {"calibration": {"fast": {"temperature": 7.0}}}
    for changed in (calibrated, values | {"max_inspections": 9}, values | {"pad_to_square": True}):
        config.write_text(json.dumps(changed))
        with pytest.raises(NoGolden, match=r"stale, of other settings \(calibration, .*: run"):
            read_golden(folder, SMALL)
    config.write_text(json.dumps(values | {"auto_threshold": 0.5, "transformers_version": "0"}))
    assert read_golden(folder, SMALL) == read_golden(shipped, SMALL)
    older = json.loads((folder / FILE).read_text())
    del older["config"]
    (folder / FILE).write_text(json.dumps(older))
    with pytest.raises(NoGolden, match="stale, of a version that did not write their config: run"):
        read_golden(folder, SMALL)
    (folder / FILE).write_text("{")
    with pytest.raises(NoGolden, match="damaged"):
        read_golden(folder, SMALL)


def test_the_shipped_checkpoint_has_its_own_golden_scores():
    """Fails where weights were replaced without `retrv-r1 verify --write`."""
    golden = read_golden("tiny")
    few = [case for case in cases() if len(case.asked.candidates) in (2, 50)][::4]
    assert set(golden) == {case.name for case in cases()}
    assert {case.mode for case in few} == {"fast", "reason"}
    assert all_passed(list(compare_engine("local", "tiny", golden, few, batches=(3,))))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "plain"])
def test_the_shipped_checkpoint_is_the_same_on_every_engine(engine):
    assert all_passed(list(compare_engine(engine, "tiny", read_golden("tiny"), cases())))


def test_the_command_prints_a_table_and_ends_with_1_where_something_differs(
    shipped, monkeypatch, tmp_path
):
    monkeypatch.setattr(golden_module, "check_lists", lambda: SMALL[:1])
    folder = tmp_path / "checkpoint"
    shutil.copytree(shipped, folder)
    written = run("verify", "--write", "--model", folder)
    assert written.exit_code == 0 and str(folder / FILE) in written.stdout
    same = run("verify", "--model", folder, "--batch", 2)
    assert same.exit_code == 0, same.stderr
    assert same.stdout.count("same") == 2 and "differs" not in same.stdout
    content = json.loads((folder / FILE).read_text())
    content["outcomes"]["picture → texts, 5, fast"]["scores"][0] += 1e-3
    (folder / FILE).write_text(json.dumps(content))
    other = run("verify", "--model", folder, "--batch", 2, "--json")
    told = json.loads(other.stdout)
    assert other.exit_code == 1 and not told["passed"]
    assert [one["worst_case"] for one in told["comparisons"]] == ["picture → texts, 5, fast"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--engine", "vllm"), "--engine must be one of local, plain, sglang, not vllm"),
        (("--write", "--engine", "local"), "--write takes no --engine"),
        (("--url", "http://127.0.0.1:9"), "no server answers at http://127.0.0.1:9"),
    ],
)
def test_the_command_explains_what_it_cannot_do(arguments, message):
    refused = run("verify", *arguments)
    assert refused.exit_code == 2 and message in " ".join(refused.stderr.split())


def test_a_form_reads_what_it_asked_for():
    (case,) = cases([make_list("text", "texts", 2)])[:1]
    rows = [{"index": 1, "relevance_score": 0.7, "score": 0.7}]
    rows.append({"index": 0, "relevance_score": 0.3, "score": 0.3})
    for form in FORMS:
        body = form.body(case)
        assert body[form.names[0]] == case.asked.query.text
        assert body[form.names[1]] == [item.text for item in case.asked.candidates]
        answer = {form.results: rows} if form.results else rows
        outcome = form.outcome(answer, 2)
        assert outcome.scores == (0.3, 0.7) and outcome.order in ((1, 0), None)
        for wrong in ({}, {"error": "x"}, [], [rows[0]], [rows[0], rows[0]], None):
            with pytest.raises(BadAnswer, match=form.name):
                form.outcome(wrong, 2)


def test_items_are_sent_whole():
    items = make_list("both", "mixed", 3).candidates
    sent = [value_of(item) for item in items]
    assert sorted(type(value).__name__ for value in sent) == ["dict", "dict", "str"]
    for item, value in zip(items, sent, strict=True):
        if item.image is not None:
            assert value["image"].startswith("data:image/png;base64,")
            assert value.get("text") == item.text
    assert all(one.name != two.name for one, two in pairwise(FORMS))
