"""Tokens are drawn from the distribution that the log-probabilities speak of."""

from __future__ import annotations

import math

import pytest
import torch

from retrv_engine import Sampling
from retrv_engine.sampler import choose

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, 3.0, 0.0])


def draw(
    logits: torch.Tensor = LOGITS,
    allowed: list[int] | None = None,
    banned: tuple[int, ...] = (),
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> tuple[int, float]:
    generator = torch.Generator().manual_seed(seed)
    return choose(logits, allowed, banned, temperature, top_p, generator)


CASES = {
    "plain": ({}, [0, 1, 2, 3, 4, 5]),
    "hot": ({"temperature": 3.0}, [0, 1, 2, 3, 4, 5]),
    "allowed": ({"allowed": [0, 2, 3]}, [0, 2, 3]),
    "banned": ({"banned": (4, 0)}, [1, 2, 3, 5]),
    "allowed but banned": ({"allowed": [0, 1, 2], "banned": (0,)}, [1, 2]),
    # Masses 0.60, 0.22, 0.08 …: 0.7 needs two tokens, 0.60 of them is not enough.
    "nucleus": ({"top_p": 0.7}, [4, 0]),
    "nucleus after the constraint": ({"top_p": 0.5, "banned": (4,)}, [0]),
    "nucleus after the temperature": ({"top_p": 0.7, "temperature": 4.0}, [4, 0, 1, 2]),
}


@pytest.mark.parametrize("options, support", CASES.values(), ids=CASES)
def test_tokens_come_as_often_as_their_log_probability_says(options, support):
    scores = torch.full_like(LOGITS, -torch.inf)
    scores[support] = LOGITS[support] / options.get("temperature", 1.0)
    expected = torch.softmax(scores.double(), -1)
    generator, count = torch.Generator().manual_seed(1), 2000
    arguments = {"allowed": None, "banned": (), "temperature": 1.0, "top_p": 1.0} | options
    drawn = torch.zeros(len(LOGITS))
    for _ in range(count):
        token, logprob = choose(LOGITS, **arguments, generator=generator)
        drawn[token] += 1
        assert abs(math.exp(logprob) - float(expected[token])) < 1e-5
    error = (drawn / count - expected).abs()
    assert (error <= 4.5 * (expected * (1 - expected) / count).sqrt() + 1e-9).all()


def test_greedy_takes_the_best_of_what_is_permitted():
    assert draw(temperature=0)[0] == 4
    token, logprob = draw(temperature=0, allowed=[1, 2, 3])
    assert token == 1
    assert logprob == pytest.approx(float(LOGITS[1:4].log_softmax(-1)[0]), abs=1e-6)
    assert draw(temperature=0, banned=(4, 0))[0] == 1
    assert draw(temperature=0, allowed=[3]) == (3, 0.0)


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
    assert {draw(halves, top_p=0.51, seed=s)[0] for s in range(30)} == {0, 1}


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
