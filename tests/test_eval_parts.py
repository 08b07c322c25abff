"""Parts of the evaluation: journal, checks, intervals, temperature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from retrv_r1.eval import EvalError, fit_temperature
from retrv_r1.eval.fitting import Lists, fit
from retrv_r1.eval.metrics import mean_interval
from retrv_r1.eval.outcomes import Journal, Outcome
from retrv_r1.eval.reliability import auroc, calibration_error
from retrv_r1.model.calibration import ModeCalibration, log_scores


def test_an_answer_below_rank_1_is_invalid():
    with pytest.raises(EvalError, match="not rank 1"):
        Outcome("9:1", ("9:1", "9:2"), (0.5, 0.5), answer="9:2").check()


def test_a_journal_keeps_what_is_whole(tmp_path):
    journal = Journal(tmp_path, "fast", {"k": 2})
    journal.add([Outcome("9:1", ("9:1",), (1.0,), answer="9:1"), Outcome("9:2", ("9:1",), (0.5,))])
    content = journal.path.read_bytes()
    journal.path.write_bytes(content[:-3])
    again = Journal(tmp_path, "fast", {"k": 2})
    assert again.outcomes == {"9:1": journal.outcomes["9:1"]}
    again.add([journal.outcomes["9:2"]])
    assert journal.path.read_bytes() == content
    assert not Journal(tmp_path, "fast", {"k": 3}).outcomes
    journal.path.write_bytes(content[:5])
    assert not Journal(tmp_path, "fast", {"k": 2}).outcomes


def test_the_bootstrap_has_the_width_of_theory():
    values = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 400, p=[0.1, 0.6, 0.3])
    found = mean_interval([values], seed=0)
    half = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * half, rel=0.05)
    wide = mean_interval([values, values[:20]], seed=0)
    assert wide.mean == pytest.approx((values.mean() + values[:20].mean()) / 2)
    assert wide.high - wide.low > found.high - found.low


@pytest.mark.parametrize("true", [0.4, 2.5])
def test_the_temperature_that_made_the_answers_is_found(true):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4000, 8, generator=generator)
    chances = (logits / true).softmax(-1)
    answers = torch.multinomial(chances, 1, generator=generator).tolist()
    rows = [row[:8] + 5 for row in logits]
    assert fit_temperature(rows, answers) == pytest.approx(true, rel=0.08)


@pytest.mark.parametrize(
    ("true", "form"),
    [
        (ModeCalibration(1.5), "temperature"),
        (ModeCalibration(1.0, length_power=-0.6), "temperature + length_power"),
        (ModeCalibration(2.0, none_bias=3.0), "temperature + none_bias"),
        (ModeCalibration(1.0, -0.6, 3.0), "temperature + length_power + none_bias"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_simplest_calibration_that_pays_is_found(true, form):
    """Answers and lists without one are drawn as the true calibration says."""
    generator = torch.Generator().manual_seed(1)
    rows, none, answers = [], [], []
    for number in range(1500):
        count = (5, 12, 50)[number % 3]
        logits = 3 * torch.randn(count + 1, generator=generator)
        chances = true.log_scores(logits[:count], logits[count]).exp()
        drawn = int(torch.multinomial(chances, 1, generator=generator))
        rows.append(logits[:count])
        none.append(float(logits[count]))
        answers.append([] if drawn == count else [drawn])
    found, tried = fit(Lists.of(rows, answers, none))
    assert found.temperature == pytest.approx(true.temperature, rel=0.1)
    assert found.length_power == pytest.approx(true.length_power, abs=0.1)
    assert found.none_bias == pytest.approx(true.none_bias, abs=0.5)
    free = [value != 0 for value in (found.length_power, found.none_bias)]
    assert free == ["length_power" in form, "none_bias" in form]
    assert len(tried) == 4 and tried[form] <= tried["temperature"]


def test_what_has_no_best_calibration_is_said():
    rows, answers = [torch.tensor([2.0, 0.0]), torch.tensor([2.0, 0.0, 1.0])] * 3, [[0], [2]] * 3
    whole, _ = fit(Lists.of(rows, answers))
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(EvalError, match="NaN or infinite"):
            Lists.of([*rows, torch.tensor([bad, 1.0])], [*answers, [0]])
        with pytest.raises(EvalError, match="NaN or infinite"):
            Lists.of(rows, answers, [0.0] * 5 + [bad])
    with pytest.raises(EvalError, match="no list has a candidate"):
        Lists.of([torch.zeros(0)] * 2, [[], []], [0.0, 1.0])
    # None of these is told from all else by any large bias: that form has no best value.
    none = [-(10.0**4), *[-900.0] * 5]
    found, tried = fit(Lists.of(rows, answers, none))
    assert found.temperature == pytest.approx(whole.temperature) and found.none_bias == 0
    assert all(map(math.isfinite, tried.values()))


def test_weights_of_what_content_tokens_say_are_found():
    """Where labels know half of what decides, and likeness or recall the other half."""
    generator = torch.Generator().manual_seed(0)
    for column, name in enumerate(("likeness", "recall")):
        rows, answers, known = [], [], []
        for _ in range(400):
            worth, own = torch.randn(2, 8, generator=generator)
            chances = (2 * (worth + own)).softmax(-1)
            answers.append([int(torch.multinomial(chances, 1, generator=generator))])
            rows.append(worth)
            other = torch.randn(8, generator=generator)
            known.append(torch.stack([own / 10, other] if column == 0 else [other, own / 10], -1))
        lists = Lists.of(rows, answers, None, known)
        found, tried = fit(lists)
        assert getattr(found, name) == pytest.approx(10, rel=0.25)
        assert found.temperature == pytest.approx(0.5, rel=0.25)
        assert abs(getattr(found, "recall" if column == 0 else "likeness")) < 0.3
        without = ModeCalibration(found.temperature)
        assert lists.accuracy(found) > lists.accuracy(without) + 0.1
        assert found.bias(known[0]).shape == (8,)
        assert tried["temperature + likeness + recall"] < tried["temperature"]


def test_weights_that_say_nothing_are_left_out():
    rows, answers = [torch.tensor([2.0, 0.0]), torch.tensor([2.0, 0.0, 1.0])] * 9, [[0], [2]] * 9
    found, _ = fit(Lists.of(rows, answers, None, [torch.zeros(len(row), 2) for row in rows]))
    assert found.likeness == found.recall == 0


def test_a_descent_that_leaves_the_numbers_gives_no_calibration(monkeypatch):
    """Its form is left out, as one whose best values lie outside the bounds."""
    rows, answers = [torch.tensor([2.0, 0.0]), torch.tensor([2.0, 0.0, 1.0])] * 3, [[0], [2]] * 3
    lists = Lists.of(rows, answers, [0.0] * 6)
    for end in (math.nan, math.inf, 1e3):

        def step(optimizer, loss, end=end):
            loss()
            with torch.no_grad():
                for value in optimizer.param_groups[0]["params"]:
                    value.fill_(end)

        monkeypatch.setattr(torch.optim.LBFGS, "step", step)
        found, tried = fit(lists)
        assert list(tried) == ["temperature"] and found.none_bias == found.length_power == 0


def test_logits_are_read_off_scores():
    one = ModeCalibration(1.7, -0.4, 2.0)
    logits = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    logs = one.log_scores(logits, torch.tensor(0.5))
    back, none = one.logits_of(logs[:3], logs[3])
    shift = back[0] - logits[0]
    torch.testing.assert_close(back - shift, logits)
    torch.testing.assert_close(none - shift, torch.tensor(0.5, dtype=torch.float64))
    assert one.logits_of(logs[:3])[1].isnan()


def test_padding_changes_no_score_and_no_gradient():
    short = torch.tensor([1.0, 2.0])
    padded = torch.tensor([[1.0, 2.0, -torch.inf], [0.0, 0.0, 0.0]])
    one = ModeCalibration(1.3, -0.5, 1.0)
    found = one.log_scores(padded, torch.tensor([0.7, 0.0]))
    expected = one.log_scores(short, torch.tensor(0.7))
    torch.testing.assert_close(found[0, [0, 1, 3]], expected)
    power = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
    log_scores(padded, None, 1.3, power, 0.0)[:, 0].sum().backward()
    assert power.grad is not None and power.grad.isfinite() and power.grad != 0


def test_calibration_error_and_auroc_by_hand():
    scores, right = np.array([0.9, 0.1, 0.8, 0.2]), np.array([True, False, True, False])
    # Bins of one: each is as far off as its score is from 0 or 1.
    assert calibration_error(scores, right) == pytest.approx((0.1 + 0.1 + 0.2 + 0.2) / 4)
    assert calibration_error(scores, right, bins=2) == pytest.approx(0.15)
    assert calibration_error(np.full(4, 0.5), right, bins=1) == 0
    absent = np.array([True, False, False, True])
    assert auroc(np.array([0.9, 0.1, 0.2, 0.8]), absent) == 1
    assert auroc(np.array([0.5, 0.5, 0.2, 0.8]), absent) == pytest.approx(3.5 / 4)
    assert auroc(np.array([np.nan] * 4), absent) is None
    assert auroc(np.zeros(4), np.zeros(4, bool)) is None


def test_a_temperature_needs_mistakes_and_answers():
    with pytest.raises(EvalError, match="relevant candidate in each"):
        fit_temperature([torch.zeros(3)], [[]])
    with pytest.raises(EvalError, match="no best temperature"):
        fit_temperature([torch.tensor([1.0, 0.0])], [[0]])
    mixed = [torch.tensor([2.0, 0.0, 0.0]), torch.tensor([2.0, 0.0]), torch.tensor([2.0, 0.0])]
    assert 0.1 < fit_temperature(mixed, [[0], [0], [1]]) < 10


def test_lists_without_a_best_candidate_are_right_by_chance():
    """A model whose scores are all equal is as right as a draw, wherever the answer stands."""
    for place in range(4):
        assert Lists.of([torch.zeros(4)], [[place]]).accuracy(ModeCalibration()) == 0.25
    lists = Lists.of([torch.tensor([1.0, 1.0, 0.0])], [[0, 2]])
    assert lists.accuracy(ModeCalibration()) == 0.5
    with pytest.raises(EvalError, match="no best temperature"):
        fit_temperature([torch.zeros(4)] * 5, [[0]] * 5)
