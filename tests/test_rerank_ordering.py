"""From outputs to a ranking: scores, votes, sliding windows over long lists, and the reasoning."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from rerank_doubles import Record, check, distinct_texts
from torch import Tensor

from retrv_engine import Output, Request, Sampling
from retrv_r1 import Item, RankRequest, Reranker
from retrv_r1.model.calibration import ModeCalibration
from retrv_r1.rerank.feature_encoder import FeatureEncoder, pack_features
from retrv_r1.rerank.ordering import Ballot, merge_windows, rank_labels, rank_verdicts, vote


def ranked_labels(logits: Tensor, answer: int, temperature: float = 1.0, places=None):
    """Labels ranked by calibrated scores."""
    calibration = ModeCalibration(temperature)
    scores, none = Ballot(logits).scores(calibration)
    assert none is None
    return rank_labels(logits, scores, answer, places)


def test_scores_fall_down_the_list_and_the_answer_leads():
    logits = torch.tensor([0.0, 2.0, 2.0, -5.0])
    ranked = ranked_labels(logits, answer=0, temperature=2.0)
    assert [k for k, _ in ranked] == [0, 1, 2, 3]
    scores = torch.softmax(logits.double() / 2, -1)
    # An unlikely answer takes the largest score, and those before it the next.
    assert [s for _, s in ranked] == pytest.approx([float(scores[k]) for k in (1, 2, 0, 3)])
    assert sum(s for _, s in ranked) == pytest.approx(1)
    best = ranked_labels(logits, answer=2)
    assert [k for k, _ in best] == [2, 1, 0, 3] and best[0][1] == best[1][1]
    assert ranked_labels(torch.tensor([-1e4]), answer=0) == [(0, 1.0)]
    extreme = ranked_labels(torch.tensor([1e4, -1e4]), answer=0, temperature=0.01)
    assert extreme == [(0, 1.0), (1, 0.0)]


def test_places_order_equal_scores_and_choose_among_equal_answers():
    logits = torch.tensor([1.0, 2.0, 2.0, 1.0])
    ranked = ranked_labels(logits, answer=1, places=[3, 2, 1, 0])
    assert [k for k, _ in ranked] == [2, 1, 3, 0]
    sampled = ranked_labels(logits, answer=3, places=[0, 1, 2, 3])
    assert [k for k, _ in sampled] == [3, 1, 2, 0], "an answer that is not the likeliest stays one"
    verdicts = [torch.tensor([0.0, 0.0])] * 2 + [torch.tensor([1.0, 0.0])]
    assert [k for k, _ in rank_verdicts(verdicts, [1, 0, 2])] == [2, 1, 0]
    assert [k for k, _ in rank_verdicts(verdicts)] == [2, 0, 1]


def test_most_votes_win_and_scores_are_means():
    def said(answer: int, logits: list[float]) -> Output:
        return Output((), answer, torch.tensor(logits), (), 0, True, ())

    few = [said(0, [9.0, 0.0]), said(1, [0.0, 0.1]), said(1, [0.0, 0.2])]
    winner, ballot = vote(few)
    assert winner is few[1], "most votes, however sure the other is"
    chances = torch.stack([o.label_logits.double().softmax(-1) for o in few]).mean(0)
    torch.testing.assert_close(ballot.labels.exp(), chances)
    assert ballot.none is None
    assert vote(few[:2])[0] is few[0], "of equally many the likelier"


def test_the_share_of_none_is_a_mean_over_votes_too():
    def said(*logits: float) -> Output:
        labels = torch.tensor(logits[:-1])
        return Output((), 0, labels, (), 0, True, (), none_logit=logits[-1])

    alone = Ballot.of(said(0.0, 1.0, 0.0))
    scores, none = alone.scores(ModeCalibration())
    assert [*scores.tolist(), none] == pytest.approx(
        torch.tensor([0.0, 1.0, 0.0]).softmax(-1).tolist()
    )
    few = [said(0.0, 0.0, 0.0), said(100.0, 0.0, 0.0)]
    scores, none = vote(few)[1].scores(ModeCalibration())
    assert [*scores.tolist(), none] == pytest.approx([2 / 3, 1 / 6, 1 / 6])
    # Whatever its share, candidates are ranked as without it.
    ballot = Ballot(torch.tensor([1.0, 3.0, 2.0]), 50.0)
    scores, none = ballot.scores(ModeCalibration(2.0, -0.5, 1.0))
    assert [k for k, _ in rank_labels(ballot.labels, scores, 1)] == [1, 2, 0]
    assert none is not None and none > 0.9
    assert float(scores.sum()) + none == pytest.approx(1)


def test_windows_join_without_a_rise():
    head, tail = [(3, 0.5), (1, 0.25)], [(2, 0.9), (0, 0.125), (4, 0.2)]
    joined = [(3, 0.5), (1, 0.25), (2, 0.25), (0, 0.125), (4, 0.125)]
    assert merge_windows(head, tail) == joined
    assert merge_windows(head, []) == head
    assert merge_windows([], tail[:1]) == tail[:1]


class Oracle:
    """An engine that knows every candidate's worth, told apart by its content token."""

    def __init__(self, reranker: Reranker, items: Sequence[Item], worth: torch.Tensor) -> None:
        model, self.tokens = reranker.model, reranker.processor.tokens
        features, offsets = pack_features(FeatureEncoder(model, reranker.processor).encode(items))
        with torch.inference_mode():
            self.content = model.icm.content(features, offsets)
        self.worth, self.windows = worth, []

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Output:
        prompt, found = list(request.prompt), []
        for label in request.labels:
            content = prompt[prompt.index(label) + 1]
            found.append(int((self.content - content.rows).abs().sum(-1).argmin()))
        self.windows.append((found, request.reason))
        logits = self.worth[found]
        answer = int(logits.argmax())
        label = self.tokens.labels[answer]
        return Output((0, label, 0), answer, logits, (), 0, True, (0.0, 0.0, 0.0))


class Constant:
    """An engine that gives every label the same logit, and answers with the first."""

    def __init__(self, tokens) -> None:
        self.tokens = tokens

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        written = (0, self.tokens.labels[0], 0)
        nothing = ((), 0, True, (0.0, 0.0, 0.0))
        return [Output(written, 0, torch.zeros(len(r.labels)), *nothing) for r in requests]


@pytest.mark.parametrize("count, window", [(2, 2), (3, 2), (5, 3), (128, 128), (129, 128)])
def test_every_candidate_is_ranked_once_whatever_the_window(model, processor, count, window):
    reranker = Reranker(model, processor, window=window)
    items = [f"item {n}" for n in range(count)]
    check(reranker.rank("q", items, mode="fast"), count)


@pytest.mark.parametrize("window", [2, 3, 50, 128])
def test_sliding_windows_bring_the_best_of_a_long_list_up(model, processor, window):
    count = 500 if window >= 50 else 40
    reranker = Reranker(model, processor, window=window)
    items = [Item(text=text) for text in distinct_texts(count)]
    worth = torch.randperm(count, generator=torch.Generator().manual_seed(window)).float() / 10
    reranker.engine = oracle = Oracle(reranker, items, worth)
    result = reranker.rank("q", items)
    check(result, count)
    best = worth.argsort(descending=True).tolist()
    sure = max(1, window // 2)
    assert [line.index for line in result][:sure] == best[:sure]
    # Fast windows up the list, each candidate in at least one; the last one in the mode asked for.
    assert [reason for _, reason in oracle.windows] == [False] * (len(oracle.windows) - 1) + [True]
    assert {len(found) for found, _ in oracle.windows} == {window}
    assert set().union(*(found for found, _ in oracle.windows)) == set(range(count))
    assert len(oracle.windows) == 1 + -(-(count - window) // (window // 2))


def test_sampling_does_not_reach_the_windows_before_the_last(model, processor):
    reranker = Reranker(model, processor, window=4)
    record = Record(reranker)
    hot = Sampling(temperature=1.0, seed=3, max_reasoning_tokens=5)
    reranker.rank("q", [f"item {n}" for n in range(8)], sampling=hot)
    assert [r.sampling.temperature for r in record.requests] == [0.0, 0.0, 1.0]


def test_earlier_windows_may_be_reasoned_like_the_last(model, processor):
    reranker = Reranker(model, processor, window=4, earlier_windows="same")
    record = Record(reranker)
    items = [f"item {n}" for n in range(8)]
    check(reranker.rank("q", items, sampling=Sampling(max_reasoning_tokens=5)), 8)
    assert [r.reason for r in record.requests] == [True, True, True]
    with pytest.raises(ValueError, match="earlier_windows"):
        Reranker(model, processor, earlier_windows="reason")


@pytest.mark.parametrize("reading", ["compressed", "pointwise"])
def test_a_constant_scorer_with_a_seed_ranks_by_chance(model, processor, reading):
    """Equal scores are drawn: no place of the caller's list is the better one.

    In one window, that is: where windows slide, the start of a list reaches the last one for sure.
    """
    reranker = Reranker(model, processor, window=10)
    items = [Item(text=text) for text in distinct_texts(10)]
    reranker.engine = Constant(reranker.processor.tokens)

    def ranked(seed):
        request = RankRequest("q", items, tie_seed=seed)
        (result,) = reranker.rank_batch([request], mode="fast", reading=reading)
        check(result, 10)
        return [line.index for line in result]

    draws = [ranked(seed) for seed in range(300)]
    assert draws[0] == ranked(0) and ranked(None) == list(range(10))
    for place in (0, 4, 9):  # of 300 draws 30 are expected, with a deviation of 5.2
        assert 10 <= sum(order[0] == place for order in draws) <= 50
        assert abs(sum(order.index(place) for order in draws) / 300 - 4.5) < 0.9


def test_pointwise_prompts_need_no_window(model, processor):
    reranker = Reranker(model, processor, window=2)
    record = Record(reranker)
    result = reranker.rank("q", distinct_texts(5), mode="fast", reading="pointwise")
    check(result, 5)
    assert len(record.requests) == 5, "each candidate is read once"


@pytest.mark.parametrize("window", [0, 1, 129])
def test_windows_that_no_prompt_holds_are_refused(model, processor, window):
    with pytest.raises(ValueError, match="window"):
        Reranker(model, processor, window=window)


class Fixed:
    """An engine that always says the same."""

    def __init__(self, **output) -> None:
        values = {
            "tokens": (0, 0, 0),
            "answer": 0,
            "inspected": (),
            "inspected_rows": 0,
            "well_formed": True,
            "logprobs": (),
        }
        self.output = Output(**values | output)

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        return [self.output for _ in requests]


def test_reasoning_names_candidates_by_their_place_in_the_callers_list(model, processor):
    reranker = Reranker(model, processor, window=4)
    tokens = processor.tokens

    def words(text: str) -> list[int]:
        return processor.tokenizer(text)["input_ids"]

    written = [
        *(tokens.think_start, *words("close:"), tokens.labels[2], tokens.labels[0], *words(".")),
        *(tokens.inspect_start, tokens.labels[2], tokens.inspect_end, *words(" ü 😀, yes. so")),
        *(tokens.labels[2], tokens.think_end, tokens.answer_start, tokens.labels[2]),
        tokens.answer_end,
    ]
    logits = torch.tensor([0.0, 1.0, 3.0, 2.0])
    reranker.engine = Fixed(
        tokens=tuple(written), answer=2, inspected=(2,), inspected_rows=4, label_logits=logits
    )
    result = reranker.rank("q", ["a", "b", "c", "d", "e", "f"])
    # The first window, of the last four, comes back as 4, 5, 3, 2; then 0, 1, 4, 5 are ranked.
    assert result.answer == 4 and result.inspected == (4,)
    assert result.reasoning == "close: [5] [1]. inspect [5] ü 😀, yes. so [5]"
    assert [line.index for line in result] == [4, 5, 1, 0, 3, 2]
    assert [line.inspected for line in result] == [True, *[False] * 5]
    assert result.tokens.inspected == 4


def test_reasoning_is_built_of_words_and_the_lists_own_labels(model, processor, tokenizer):
    """Prompt structure, text ends and labels beyond the list cannot be written by the model."""
    reranker = Reranker(model, processor)
    special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    assert len(special) == 144
    tokens = reranker.processor.tokens
    known = {tokens.think_start, tokens.think_end, tokens.answer_start, tokens.answer_end}
    known |= {tokens.inspect_start, tokens.inspect_end, *tokens.labels[:3]}
    record = Record(reranker)
    for seed in range(6):
        hot = Sampling(temperature=5.0, max_reasoning_tokens=60, seed=seed)
        result = reranker.rank("q", ["find", "a red apple", "a blue bird"], sampling=hot)
        assert not {name for name in tokenizer.all_special_tokens if name in result.reasoning}
    used = {token for output in record.outputs for token in output.tokens} & special
    assert used <= known and len(record.outputs) == 6
