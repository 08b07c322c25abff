"""Lists of any length: every candidate ranked once, the best brought up by sliding windows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from rerank_doubles import Record, check, distinct_texts

from retrv_engine import Output, Request, Sampling
from retrv_r1 import Item, RankRequest, Reranker
from retrv_r1.rerank.feature_encoder import FeatureEncoder, pack_features


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
