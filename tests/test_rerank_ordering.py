"""From label logits to an order: scores, votes, and windows joined."""

from __future__ import annotations

import pytest
import torch

from retrv_engine import Output
from retrv_r1.rerank.ordering import merge_windows, rank_labels, rank_verdicts, vote


def test_scores_fall_down_the_list_and_the_answer_leads():
    logits = torch.tensor([0.0, 2.0, 2.0, -5.0])
    ranked = rank_labels(logits, answer=0, temperature=2.0)
    assert [k for k, _ in ranked] == [0, 1, 2, 3]
    scores = torch.softmax(logits.double() / 2, -1)
    assert [s for _, s in ranked] == pytest.approx([float(scores[k]) for k in (1, 1, 2, 3)])
    best = rank_labels(logits, answer=2, temperature=1.0)
    assert [k for k, _ in best] == [2, 1, 0, 3] and best[0][1] == best[1][1]
    assert rank_labels(torch.tensor([-1e4]), answer=0, temperature=1.0) == [(0, 1.0)]
    extreme = rank_labels(torch.tensor([1e4, -1e4]), answer=0, temperature=0.01)
    assert extreme == [(0, 1.0), (1, 0.0)]


def test_places_order_equal_scores_and_choose_among_equal_answers():
    logits = torch.tensor([1.0, 2.0, 2.0, 1.0])
    ranked = rank_labels(logits, answer=1, temperature=1.0, places=[3, 2, 1, 0])
    assert [k for k, _ in ranked] == [2, 1, 3, 0]
    sampled = rank_labels(logits, answer=3, temperature=1.0, places=[0, 1, 2, 3])
    assert [k for k, _ in sampled] == [3, 1, 2, 0], "an answer that is not the likeliest stays one"
    verdicts = [torch.tensor([0.0, 0.0])] * 2 + [torch.tensor([1.0, 0.0])]
    assert [k for k, _ in rank_verdicts(verdicts, [1, 0, 2])] == [2, 1, 0]
    assert [k for k, _ in rank_verdicts(verdicts)] == [2, 0, 1]


def test_most_votes_win_and_scores_are_means():
    def said(answer: int, logits: list[float]) -> Output:
        return Output((), answer, torch.tensor(logits), (), 0, True, ())

    few = [said(0, [9.0, 0.0]), said(1, [0.0, 0.1]), said(1, [0.0, 0.2])]
    winner, logits = vote(few)
    assert winner is few[1], "most votes, however sure the other is"
    chances = torch.stack([o.label_logits.double().softmax(-1) for o in few]).mean(0)
    torch.testing.assert_close(logits.exp(), chances)
    assert vote(few[:2])[0] is few[0], "of equally many the likelier"


def test_windows_join_without_a_rise():
    head, tail = [(3, 0.5), (1, 0.25)], [(2, 0.9), (0, 0.125), (4, 0.2)]
    joined = [(3, 0.5), (1, 0.25), (2, 0.25), (0, 0.125), (4, 0.125)]
    assert merge_windows(head, tail) == joined
    assert merge_windows(head, []) == head
    assert merge_windows([], tail[:1]) == tail[:1]
