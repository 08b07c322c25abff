"""Tokens are drawn from the distribution that the log-probabilities speak of."""

from __future__ import annotations

import math
import random

import pytest
import torch

from retrv_engine import Sampling, sampler
from retrv_engine.sampler import Choice, Masks, Permitted, pick

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, 3.0, 0.0])


def only(*tokens: int) -> Permitted:
    return Permitted(tokens, False)


def draw(logits: torch.Tensor = LOGITS, seed: int = 0, **values) -> tuple[int, float]:
    choice = Choice(**{"temperature": 1.0, "uniform": random.Random(seed).random()} | values)
    return pick(logits[None], [choice])[0][:2]


CASES = {
    "plain": ({}, [0, 1, 2, 3, 4, 5]),
    "hot": ({"temperature": 3.0}, [0, 1, 2, 3, 4, 5]),
    "only": ({"permitted": only(0, 2, 3)}, [0, 2, 3]),
    "banned": ({"permitted": Permitted((4, 0))}, [1, 2, 3, 5]),
    # Masses 0.60, 0.22, 0.08 …: 0.7 needs two tokens, 0.60 of them is not enough.
    "nucleus": ({"top_p": 0.7}, [4, 0]),
    "nucleus after the constraint": ({"top_p": 0.5, "permitted": Permitted((4,))}, [0]),
    "nucleus after the temperature": ({"top_p": 0.7, "temperature": 4.0}, [4, 0, 1, 2]),
}


@pytest.mark.parametrize("options, support", CASES.values(), ids=CASES)
def test_tokens_come_as_often_as_their_log_probability_says(options, support):
    scores = torch.full_like(LOGITS, -torch.inf)
    scores[support] = LOGITS[support] / options.get("temperature", 1.0)
    expected = torch.softmax(scores.double(), -1)
    generator, count = random.Random(1), 2000
    choices = [
        Choice(**{"temperature": 1.0, "uniform": generator.random()} | options)
        for _ in range(count)
    ]
    drawn = torch.zeros(len(LOGITS))
    for token, logprob, likeliest, _ in pick(LOGITS.expand(count, -1), choices):
        drawn[token] += 1
        assert abs(math.exp(logprob) - float(expected[token])) < 1e-5
        assert likeliest == 4
    error = (drawn / count - expected).abs()
    assert (error <= 4.5 * (expected * (1 - expected) / count).sqrt() + 1e-9).all()


def test_greedy_takes_the_best_of_what_is_permitted():
    assert draw(temperature=0)[0] == 4
    token, logprob = draw(temperature=0, permitted=only(1, 2, 3))
    assert token == 1
    assert logprob == pytest.approx(float(LOGITS[1:4].log_softmax(-1)[0]), abs=1e-6)
    assert draw(temperature=0, permitted=Permitted((4, 0)))[0] == 1
    assert draw(temperature=0, permitted=only(3)) == (3, 0.0)


def test_a_row_is_taken_alike_whatever_stands_beside_it():
    """Greedy, drawn, cut, given, and with labels: each alone and all in one call."""
    generator = torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(6, 500, generator=generator)
    choices = [
        Choice(),
        Choice(only(*range(9, 60)), labels=(9, 11, 59)),
        Choice(Permitted((7, 8)), 0.9, 1.0, 0.73),
        Choice(Permitted((7, 8)), 1.4, 0.8, 0.999999999999),
        Choice(temperature=0.7, top_p=0.9, uniform=0.0, labels=(3,)),
        Choice(target=321),
    ]
    masks = Masks(8, 500, "cpu")
    together = pick(logits, choices, masks)
    for row, choice, found in zip(logits, choices, together, strict=True):
        (alone,) = pick(row[None], [choice])
        assert alone[:3] == found[:3] and found.likeliest == int(row.argmax())
        if choice.labels:
            assert torch.equal(found.labels, row[list(choice.labels)])
            assert torch.equal(alone.labels, found.labels)
        else:
            assert found.labels is None
    assert together[5].token == 321
    assert together[5].logprob == pytest.approx(float(logits[5].log_softmax(-1)[321]), abs=1e-6)


def test_masks_are_replaced_when_there_are_more_than_fit():
    masks = Masks(3, 6, "cpu")
    for _ in range(2):
        for token in range(6):
            assert draw_from(masks, only(token)) == token
        assert draw_from(masks, Permitted()) == 4
    assert len(masks._rows) == 2
    kept = masks.row(only(5))
    assert masks.row(only(5)) == kept, "what is there is not written again"


def draw_from(masks: Masks, permitted: Permitted) -> int:
    return pick(LOGITS[None], [Choice(permitted)], masks)[0].token


def test_what_has_no_mass_is_never_drawn():
    """Not at the ends of the random numbers either."""
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf])
    for uniform, token in ((0.0, 1), (0.4999, 1), (0.5001, 3), (1 - 2**-53, 3)):
        assert draw(logits, uniform=uniform)[0] == token


@pytest.mark.parametrize("temperature", [1e-6, 1e-42, 5e-324])
def test_a_temperature_too_cold_to_divide_by_is_greedy(temperature):
    assert draw(temperature=temperature) == draw(temperature=0)
    assert draw(temperature=2e-5)[0] == 4


def test_the_smallest_nucleus_is_the_best_token():
    for seed in range(20):
        assert draw(top_p=1e-9, seed=seed, temperature=2.0) == (4, 0.0)


def test_a_nucleus_that_is_reached_exactly_takes_no_more():
    halves = torch.tensor([0.5, 0.25, 0.25]).log()
    assert {draw(halves, top_p=0.5, seed=s)[0] for s in range(30)} == {0}
    assert {draw(halves, top_p=0.51, seed=s)[0] for s in range(30)} == {0, 1, 2}, "equals stay"
    uneven = torch.tensor([0.5, 0.26, 0.24]).log()
    assert {draw(uneven, top_p=0.51, seed=s)[0] for s in range(30)} == {0, 1}


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_a_nucleus_is_the_same_however_it_is_looked_for(top_p, monkeypatch):
    """Among the first few, or in all: half of these rows need more than are looked at first."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.tensor([0.1, 4.0])[torch.arange(8) % 2, None]
    logits = logits * torch.randn(8, 600, generator=generator)
    choices = [Choice(temperature=1.0, top_p=top_p, uniform=k / 8) for k in range(8)]
    found = pick(logits, choices)
    monkeypatch.setattr(sampler, "FIRST", ())
    assert pick(logits, choices) == found
    for row, one in zip(logits, found, strict=True):
        ordered = row.softmax(-1).sort(descending=True).values.double()
        need = int((ordered.cumsum(0) < top_p).sum()) + 1
        assert one.logprob == pytest.approx(
            float((row.softmax(-1)[one.token] / ordered[:need].sum()).log()), abs=1e-4
        )
        assert row.softmax(-1)[one.token] >= ordered[need - 1]


def test_equal_tokens_are_all_drawn_and_low_precision_is_fine():
    flat = torch.zeros(4, dtype=torch.bfloat16)
    assert {draw(flat, seed=s)[0] for s in range(40)} == {0, 1, 2, 3}
    assert draw(flat)[1] == pytest.approx(-math.log(4), abs=1e-6)
    certain = torch.tensor([0.0, 1e4, -1e4])
    assert draw(certain, top_p=0.9) == (1, 0.0)


BAD = [
    *({"temperature": t} for t in (-0.1, math.inf, math.nan)),
    *({"top_p": p} for p in (0.0, -1.0, 1.01, math.nan)),
    {"max_reasoning_tokens": 0},
    {"max_inspections": -1},
]


@pytest.mark.parametrize("options", BAD, ids=str)
def test_sampling_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Sampling(**options)


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_logits_that_are_not_a_number_give_a_token_of_the_vocabulary(top_p):
    token, logprob = draw(torch.full_like(LOGITS, torch.nan), top_p=top_p)
    assert token in range(len(LOGITS)) and math.isnan(logprob)


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_log_probabilities_have_gradients(top_p):
    scores = LOGITS.clone().requires_grad_()
    numbers = torch.tensor([2.0]), torch.tensor([top_p])
    sampler.distribution(scores[None], *numbers, top_p < 1)[0, 4].backward()
    kept = [0, 1, 4] if top_p < 1 else list(range(6))
    expected = torch.zeros(6)
    expected[kept] = -torch.softmax(LOGITS[kept] / 2, -1) / 2
    expected[4] += 0.5
    torch.testing.assert_close(scores.grad, expected)


def test_a_given_token_stays_in_the_nucleus():
    numbers = torch.tensor([1.0]), torch.tensor([0.7]), True
    found = sampler.distribution(LOGITS[None].clone(), *numbers, torch.tensor([5]))[0]
    assert found.isfinite().nonzero()[:, 0].tolist() == [0, 4, 5]
    assert float(found.exp().sum()) == pytest.approx(1.0)
