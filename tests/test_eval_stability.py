"""Answers that depend on wording or order are found, and only those."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from eval_fixtures import write_cell, write_lines
from typer.testing import CliRunner

from retrv_r1.command.cli import app
from retrv_r1.data import mbeir
from retrv_r1.eval import EvalError
from retrv_r1.eval.names import Names
from retrv_r1.eval.stability import NamedList, lists_of_pictures, measure_stability
from retrv_r1.types import Item, RankedItem, RankedResults, RankRequest

pytest_plugins = ["eval_fixtures"]


class Reader:
    """Answers with the candidate whose text is in the query, else with the first or the least."""

    def __init__(self, fallback: str) -> None:
        self.fallback, self.asked = fallback, 0

    def rank_batch(self, requests: Sequence[RankRequest], *, mode: str) -> list[RankedResults]:
        self.asked += len(requests)
        return [self._rank(request) for request in requests]

    def _rank(self, request: RankRequest) -> RankedResults:
        items = [Item.of(one) for one in request.candidates]
        texts, query = [str(item.text) for item in items], Item.of(request.query).text or ""
        found = [k for k, text in enumerate(texts) if text in query.split()]
        least = texts.index(min(texts))
        answer = found[0] if found else (0 if self.fallback == "first" else least)
        ranking = (RankedItem(answer, 0.5, items[answer]),)
        return RankedResults(Item.of(request.query), answer, ranking)


LISTS = [
    NamedList("dog", [Item("cat"), Item("dog"), Item("ant")], frozenset({1})),
    NamedList("ox", [Item("cat"), Item("dog"), Item("ant")], frozenset({0})),
]
FRAMES = ("{x}", "a {x}", "{x}s")


def reword(name: str) -> list[str]:
    return [frame.format(x=name) for frame in FRAMES]


def measured(fallback: str, **options):
    reader = Reader(fallback)
    options = {"modes": ("fast",), "shuffles": 20} | options
    found = measure_stability(reader, LISTS, frames=FRAMES, reword=reword, **options)
    return found[0], reader.asked


def test_an_answer_that_follows_the_wording_is_found():
    found, asked = measured("least")
    # "dogs" is no word of the list: the answer is then the ant.
    assert [one.recall for one in found.wordings] == [0.5, 0.5, 0.0]
    assert [one.differs for one in found.wordings] == [0.0, 0.0, 0.5]
    assert found.reworded == 0.5 and found.wordings[0].score == 0.5
    assert (found.reordered, found.reordered_lists) == (0.0, 0.0), "it does not read the order"
    assert asked == 2 * (3 + 20)


def test_an_answer_that_follows_the_order_is_found():
    found, _ = measured("first")
    assert found.reordered_lists == 0.5, "of the ox alone, which is not there"
    assert found.reordered is not None and 0.2 < found.reordered < 0.45
    assert found == measured("first")[0], "orders follow their seed"
    others = {measured("first", seed=seed)[0].reordered for seed in range(1, 6)}
    assert len(others) > 1


def test_parts_that_are_not_asked_for_are_not_known():
    found, asked = measured("least", shuffles=0)
    assert (found.reordered, found.reordered_lists, asked) == (None, None, 6)
    with pytest.raises(EvalError, match="no list"):
        measure_stability(Reader("least"), [], frames=FRAMES, reword=reword)


def test_pictures_are_named_by_their_files():
    items = [Item(image=f"a/{name}.png") for name in ("fire-engine", "Cat_face", "fire engine")]
    lists = lists_of_pictures(items)
    assert [(one.name, set(one.right)) for one in lists] == [
        ("fire engine", {0, 2}),
        ("Cat face", {1}),
    ]
    with pytest.raises(EvalError, match="named by their files"):
        lists_of_pictures([Item("text")])


def test_lists_of_a_data_set_ask_for_the_target_by_name(tmp_path):
    write_cell(tmp_path)
    about = [{"qid": "9:1", "target": {"name": "cat"}}, {"qid": "9:2", "target": None}]
    write_lines(tmp_path / "query_metadata.jsonl", about)
    names = Names(tmp_path)
    queries = mbeir.load(tmp_path, "toy", "test").queries
    assert [names.wanted(query) for query in queries] == ["cat", None, None]


def test_the_command_prints_a_table_and_writes_json(two_stages, picture, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, name in enumerate(("red-apple", "bus", "violin")):
        picture(number).save(folder / f"{name}.png")
    out = tmp_path / "found.json"
    asked = ["stability", str(folder), "-m", str(two_stages), "--mode", "fast", "--device", "cpu"]
    asked += ["--shuffles", "2", "--out", str(out)]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    (mode,) = json.loads(out.read_text())["modes"]
    assert mode["lists"] == 3 and len(mode["wordings"]) == 6
    assert all(0 <= one["recall"] <= 1 for one in mode["wordings"])
    assert mode["wordings"][0]["differs"] == 0 and 0 <= mode["reordered"] <= 1
    for shown in ("a picture of {a}", "fast, R@1", "3 lists", "2 shuffles"):
        assert shown in result.output
    write_cell(tmp_path / "set", split="val")
    asked[1] = str(tmp_path / "set")
    refused = CliRunner().invoke(app, asked)
    assert refused.exit_code == 2 and "no list" in refused.output
