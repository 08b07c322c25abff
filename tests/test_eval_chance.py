"""A model that tells nothing apart reports chance in every table; twins and ties never help.

The relevant candidates come first in pool files, where a careless choice among equals finds them.
"""

from __future__ import annotations

import json
import math
import random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrv_r1.eval import run
from retrv_r1.model.first_stage import FirstStage
from retrv_r1.types import Item, RankedItem, RankedResults, TokenCounts

QUERIES = 150
ABOUT = {"derandomize": True, "deadline": None, "max_examples": 8}
FIXTURES = {"suppress_health_check": [HealthCheck.function_scoped_fixture]}


def write_set(root, queries, pool):
    """A data set with one of M-BEIR's cells.

    Args:
        queries: text of each query with its relevant numbers.
        pool: text of each candidate.
    """

    def write(path, lines):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("".join(f"{line}\n" for line in lines))

    asked = [
        {
            "qid": f"2:{number + 1}",
            "query_txt": text,
            "query_modality": "text",
            "pos_cand_list": [f"2:{did + 1}" for did in relevant],
            "task_id": 1,
        }
        for number, (text, relevant) in enumerate(queries)
    ]
    candidates = [
        {"did": f"2:{number + 1}", "txt": text, "modality": "text"}
        for number, text in enumerate(pool)
    ]
    write("query/test/mbeir_webqa_task1_test.jsonl", map(json.dumps, asked))
    write("cand_pool/local/mbeir_webqa_task1_cand_pool.jsonl", map(json.dumps, candidates))
    head = "query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1"
    write("instructions/query_instructions.tsv", [head, "text\ttext\twebqa\t2\tFind it."])


class Stage:
    """A first stage that gives equal vectors to texts that ``told`` makes equal."""

    cut, cut_places = 0, ()

    def __init__(self, told) -> None:
        self.told = told

    def embed(self, items, what=""):
        rows = torch.zeros(len(items), 16)
        for row, item in zip(rows, items, strict=True):
            row[self.told(item.text)] = 1
        return rows

    def search(self, queries, pool, k, tie_seeds):
        return FirstStage.search(self, queries, pool, k, tie_seeds)


class Ranker:
    """Says of every candidate whether ``likes`` it, and nothing else.

    Equal ones stay in the prompt's order, or are drawn by the request's seed, as in Reranker.
    """

    window = 50

    def __init__(self, likes) -> None:
        self.likes, self.model = likes, SimpleNamespace()

    def rank_batch(self, requests, *, mode, reading, sampling):
        return [self.rank(request, mode) for request in requests]

    def rank(self, request, mode):
        order = list(range(len(request.candidates)))
        if request.tie_seed is not None:
            random.Random(request.tie_seed).shuffle(order)
        good = [float(self.likes(request.query, item)) for item in request.candidates]
        order.sort(key=lambda number: -good[number])
        ranked = [RankedItem(n, 0.25 + good[n] / 2, request.candidates[n]) for n in order]
        return RankedResults(
            query=Item.of(request.query),
            answer=order[0],
            ranking=tuple(ranked),
            mode=mode,
            timings={"features": 0.0},
            tokens=TokenCounts(prompt=9, candidates=len(order)),
        )


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """A function that evaluates stand-ins for both stages."""
    model = tmp_path / "model"
    (model / "embedder").mkdir(parents=True)
    for folder in (model, model / "embedder"):
        (folder / "config.json").write_text("{}")

    def evaluated(queries, pool, told, likes, **options):
        names = "retrv_r1.eval.models."
        monkeypatch.setattr(names + "FirstStage.from_pretrained", lambda *_, **__: Stage(told))
        monkeypatch.setattr(names + "Reranker.from_pretrained", lambda *_, **__: Ranker(likes))
        write_set(tmp_path / "set", queries, pool)
        report = run(tmp_path / "set", model=model, modes=("fast",), **options)
        (part,) = report["parts"]
        return part

    return evaluated


def near(found, chances):
    """Whether a share of queries is that of independent chances, within five deviations."""
    expected = sum(chances) / len(chances)
    spread = math.sqrt(sum(p * (1 - p) for p in chances)) / len(chances)
    return abs(found - expected) <= 5 * spread + 1e-9


def check_all(part, chance):
    """All recalls of a part are those of ``chance(k of the system, cutoff)`` for each query."""
    for row in (*part["mean"], *part["cells"][0]["results"]):
        for cutoff, recall in row["recall"].items():
            assert near(recall, chance(row["k"], int(cutoff))), (row["system"], row["k"], cutoff)
        assert row["mbeir"] == row["recall"]["5"]
    for row in part["differences"]:
        for cutoff, interval in row["recall"].items():
            known = None if row["baseline"] == "first stage" else row["k"]
            before, after = (chance(k, int(cutoff)) for k in (known, row["k"]))
            gap = sum(after) / len(after) - sum(before) / len(before)
            assert abs(interval["mean"] - gap) <= 10 * 0.5 / math.sqrt(QUERIES)


def found_by_chance(relevant, size, cutoff):
    """Chance of a relevant one among ``cutoff`` of ``size`` that are drawn."""
    return 1 - math.comb(size - relevant, min(cutoff, size)) / math.comb(size, min(cutoff, size))


@settings(**ABOUT, **FIXTURES)
@given(
    size=st.integers(3, 12),
    k=st.integers(2, 12),
    relevant=st.integers(1, 3),
    seed=st.integers(0, 9),
    order=st.sampled_from(["shuffled", "retrieved"]),
)
def test_two_constant_stages_report_chance(evaluate, size, k, relevant, seed, order):
    queries = [("any", range(1 + i % relevant)) for i in range(QUERIES)]
    pool = [f"candidate {number}" for number in range(size)]
    options = {"readings": ("compressed", "full", "pointwise"), "fuse": 1.0}
    part = evaluate(
        *(queries, pool, lambda _: 0, lambda *_: False),
        **{"k": (k,), "seed": seed, "order": order, **options},
    )

    def chance(count, cutoff):
        shown = min(cutoff, count or cutoff)
        return [found_by_chance(len(known), size, shown) for _, known in queries]

    assert len(part["mean"]) == 5
    check_all(part, chance)


@settings(**ABOUT, **FIXTURES)
@given(
    k=st.integers(2, 10),
    seed=st.integers(0, 9),
    order=st.sampled_from(["shuffled", "retrieved"]),
)
def test_a_constant_reranker_gains_nothing_from_a_good_first_stage(evaluate, k, seed, order):
    """The first stage has the right one at rank 1; constant scores put it anywhere in the list."""
    queries = [(f"{i % 10}", [i % 10]) for i in range(QUERIES)]
    pool = [f"{number}" for number in range(10)]
    part = evaluate(
        *(queries, pool, int, lambda *_: False),
        **{"k": (k,), "seed": seed, "order": order, "full_tokens": False},
    )

    def chance(count, cutoff):
        right = 1.0 if count is None else found_by_chance(1, min(count, 10), cutoff)
        return [right] * QUERIES

    check_all(part, chance)


@settings(**ABOUT, **FIXTURES)
@given(
    twins=st.integers(1, 4),
    seed=st.integers(0, 9),
    order=st.sampled_from(["shuffled", "retrieved"]),
)
def test_twins_of_the_right_candidate_never_help(evaluate, twins, seed, order):
    """Both stages see the right text, but not which of its copies is the relevant one."""
    queries = [(f"{i % 3}", [i % 3]) for i in range(QUERIES)]
    pool = [f"{number % 3}" for number in range(3 * (1 + twins))]
    part = evaluate(
        *(queries, pool, int, lambda query, item: query.text == item.text),
        **{"k": (2, len(pool)), "seed": seed, "order": order, "full_tokens": False},
    )

    def chance(count, cutoff):
        return [found_by_chance(1, 1 + twins, min(cutoff, count or cutoff))] * QUERIES

    check_all(part, chance)
