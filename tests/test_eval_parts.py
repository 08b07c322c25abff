"""Parts of the evaluation: journal, checks, intervals, temperature."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from retrv_r1.eval import EvalError, fit_temperature
from retrv_r1.eval.calibration import _Lists
from retrv_r1.eval.metrics import mean_interval
from retrv_r1.eval.outcomes import Journal, Outcome


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
        assert _Lists.of([torch.zeros(4)], [[place]]).accuracy() == 0.25
    assert _Lists.of([torch.tensor([1.0, 1.0, 0.0])], [[0, 2]]).accuracy() == 0.5
    with pytest.raises(EvalError, match="no best temperature"):
        fit_temperature([torch.zeros(4)] * 5, [[0]] * 5)
