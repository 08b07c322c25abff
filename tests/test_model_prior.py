"""What content tokens say of an answer, and how it reaches the labels of a prompt."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from rerank_doubles import Record

from retrv_r1 import RankRequest, Reranker
from retrv_r1.eval.calibration import _logits
from retrv_r1.eval.outcomes import Outcome
from retrv_r1.model.calibration import ModeCalibration
from retrv_r1.model.icm import Contents
from retrv_r1.model.prior import resemblance

TEXTS = ["a red apple", "a blue car", "an apple pie", "dogs"]


def test_resemblance_is_what_its_equations_say():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(5, 16, generator=generator)
    reminds = torch.randn(5, 7, generator=generator).softmax(-1)
    found = resemblance(Contents(tokens, reminds))
    cosines = [float(torch.cosine_similarity(tokens[0], one, dim=0)) for one in tokens[1:]]
    for k, (likeness, recall) in enumerate(found.tolist()):
        assert likeness == pytest.approx(cosines[k] - sum(cosines) / 4, abs=1e-6)
        agrees = sum(a * b for a, b in zip(*reminds[[0, k + 1]].tolist(), strict=True))
        assert recall == pytest.approx(math.log(agrees + 1e-3), abs=1e-6)
    assert not resemblance(Contents(tokens))[:, 1].any()
    assert resemblance(Contents(tokens[:2]))[0, 0] == 0, "a candidate alone is like the mean"
    low = resemblance(Contents(tokens.bfloat16(), reminds.bfloat16()))
    assert low.dtype == torch.float32 and (low - found).abs().max() < 0.05


def test_each_mode_adds_what_its_calibration_weighs(model, processor, monkeypatch):
    weights = {
        "fast": ModeCalibration(likeness=30.0),
        "reason": ModeCalibration(likeness=-20.0, recall=2.0),
    }
    monkeypatch.setattr(model.config, "calibration_of", weights.get)
    with Reranker(model, processor) as reranker:
        known = reranker.resemblance(RankRequest("an apple", TEXTS))
        record = Record(reranker)
        for mode in ("fast", "reason"):
            results = reranker.rank("an apple", TEXTS, mode=mode)
            request = record.requests[-1]
            bias = weights[mode].bias(known)
            torch.testing.assert_close(torch.tensor(request.label_bias), bias)
            (output,) = reranker.engine.generate([request])
            assert output.answer == int(output.label_logits.argmax())
            (plain,) = reranker.engine.generate([replace(request, label_bias=())])
            torch.testing.assert_close(output.label_logits, plain.label_logits + bias)
            assert results.ranking[0].index == output.answer


def test_full_tokens_and_models_without_weights_have_no_biases(model, processor, monkeypatch):
    with Reranker(model, processor) as reranker:
        record = Record(reranker)
        reranker.rank("an apple", TEXTS, mode="fast")
        weighed = ModeCalibration(likeness=30.0)
        monkeypatch.setattr(model.config, "calibration_of", lambda _: weighed)
        reranker.rank("an apple", TEXTS, mode="fast", reading="full")
        reranker.rank("an apple", TEXTS, mode="fast", reading="pointwise")
        assert len(record.requests) == 6
        assert not any(request.label_bias for request in record.requests)


def test_the_draft_of_auto_has_the_weights_of_fast(model, processor, monkeypatch):
    weights = {"fast": ModeCalibration(likeness=30.0), "reason": ModeCalibration(recall=2.0)}
    monkeypatch.setattr(model.config, "calibration_of", weights.get)
    monkeypatch.setattr(model.config, "auto_threshold", 1.0)
    with Reranker(model, processor) as reranker:
        known = reranker.resemblance(RankRequest("an apple", TEXTS))
        record = Record(reranker)
        reranker.rank("an apple", TEXTS, mode="auto")
        draft, last = record.requests
        assert (draft.reason, last.reason) == (False, True)
        torch.testing.assert_close(torch.tensor(draft.label_bias), weights["fast"].bias(known))
        assert not last.label_bias or not any(last.label_bias), "recall is 0 without a memory"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_content_tokens_that_are_no_numbers_are_named(make_model, processor, monkeypatch, bad):
    model = make_model()
    with torch.no_grad():
        model.icm.content_norm.weight.fill_(bad)
    weighed = ModeCalibration(likeness=30.0)
    monkeypatch.setattr(model.config, "calibration_of", lambda _: weighed)
    with (
        Reranker(model, processor) as reranker,
        pytest.raises(FloatingPointError, match=r"content tokens are NaN.*load"),
    ):
        reranker.rank("an apple", TEXTS, mode="fast")


def test_calibration_reads_the_logits_without_the_biases_that_they_had(
    model, processor, monkeypatch
):
    """Whatever a checkpoint's calibration was before, the same lists are fitted."""
    before = ModeCalibration(2.0, likeness=30.0)
    with Reranker(model, processor) as reranker:
        known = reranker.resemblance(RankRequest("an apple", TEXTS))
        record = Record(reranker)
        plain = reranker.rank("an apple", TEXTS, mode="fast")
        (logits,) = [output.label_logits.double() for output in record.outputs]
        monkeypatch.setattr(model.config, "calibration_of", lambda _: before)
        biased = reranker.rank("an apple", TEXTS, mode="fast")
    assert [x.score for x in biased] != pytest.approx([x.score for x in plain])
    outcome = Outcome.of("q", ["0", "1", "2", "3"], biased, 4, 0.0)
    order = [int(did) for did in outcome.ranking]
    found, _ = _logits(outcome, before, known[order].double())
    expected = logits[order]
    torch.testing.assert_close(
        found - found.mean(), expected - expected.mean(), atol=1e-4, rtol=1e-4
    )
