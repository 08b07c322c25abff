"""Numbers that cannot be: NaN is an error; texts beyond the limit are marked; float64 ranks."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from rerank_doubles import SHORT, check

from retrv_r1.model.calibration import ModeCalibration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.rerank.feature_encoder import FeatureEncoder
from retrv_r1.rerank.feature_store import fingerprint
from retrv_r1.rerank.ordering import Ballot, rank_verdicts
from retrv_r1.rerank.reranker import Reranker
from retrv_r1.types import Item

WAYS = [
    (mode, reading)
    for mode in ("fast", "reason")
    for reading in ("compressed", "full", "pointwise")
    if (mode, reading) != ("reason", "pointwise")
]


@pytest.mark.parametrize("engine", ["local", "plain"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_an_error_in_every_engine_mode_and_reading(make_model, processor, engine, value):
    model = make_model()
    with torch.no_grad():
        model.language_model.norm.weight.fill_(value)
    with Reranker(model, processor, engine=engine) as reranker:
        for mode, reading in WAYS:
            with pytest.raises(FloatingPointError, match=r"NaN.*load"):
                reranker.rank("q", ["a", "b"], mode=mode, reading=reading, sampling=SHORT)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_are_never_nan_whatever_an_engine_gives(bad):
    with pytest.raises(FloatingPointError, match="scores are NaN"):
        Ballot(torch.tensor([0.0, bad])).scores(ModeCalibration())
    with pytest.raises(FloatingPointError, match="scores are NaN"):
        Ballot(torch.tensor([0.0, 1.0]), bad).scores(ModeCalibration())
    with pytest.raises(FloatingPointError, match="scores are NaN"):
        rank_verdicts([torch.tensor([bad, bad]), torch.tensor([0.0, 1.0])])


@pytest.mark.parametrize("engine", ["local", "plain"])
def test_float64_ranks_as_float32_does(make_model, processor, picture, engine):
    items = ["a red apple", "a blue bird", picture(1), "find"]
    for mode, reading in WAYS:
        found = []
        for dtype in (torch.float32, torch.float64):
            with Reranker(make_model().to(dtype), processor, engine=engine) as reranker:
                found.append(
                    reranker.rank("a bird", items, mode=mode, reading=reading, sampling=SHORT)
                )
            check(found[-1], len(items))
        assert found[1].dtype == "float64"
        assert [row.index for row in found[0]] == [row.index for row in found[1]]
        scores = [[row.score for row in one] for one in found]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_a_text_beyond_the_limit_is_marked_and_the_limit_can_be_set(
    model, tokenizer, image_processor, tmp_path
):
    long, short = "a red apple " * 9, "a bird"
    processor = RetrvR1Processor(model.config, tokenizer, image_processor, max_text_tokens=5)
    with Reranker(model, processor, cache=tmp_path) as reranker:
        result = reranker.rank(long, [long, short], mode="fast")
        assert result.query_truncated
        assert {row.index: row.truncated for row in result} == {0: True, 1: False}
        assert not reranker.rank(short, [short], mode="fast").query_truncated
    again = FeatureEncoder(model, processor, directory=tmp_path)
    assert [one.item.truncated for one in again.encode([Item(long), Item(short)])] == [True, False]
    wider = RetrvR1Processor(model.config, tokenizer, image_processor)
    assert fingerprint(model, processor) != fingerprint(model, wider)
    assert not Reranker(model, wider).rank(short, [long], mode="fast")[0].truncated


def test_a_limit_below_one_is_refused():
    with pytest.raises(ValueError, match="max_text_tokens must be at least 1"):
        Reranker.from_pretrained("tiny", max_text_tokens=0)


def test_a_reranker_that_is_pickled_names_the_fix(model, processor):
    reranker = Reranker(model, processor)
    for make in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="from_pretrained in each process"):
            make(reranker)


def test_the_same_item_twice_is_ranked_twice(model, processor, picture):
    same = Item(text="a red apple", image=picture(1), id="same")
    result = Reranker(model, processor).rank("q", [same, same, "other", same], sampling=SHORT)
    check(result, 4)
    assert [row.item.id for row in result].count("same") == 3
