"""Reading: states that learn what the first stage knows, and texts that are encoded once."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from retrv_r1.model.tokens import encode_text, encode_texts
from retrv_r1.train import known_texts
from retrv_r1.train.known_texts import KnownTexts
from retrv_r1.train.reading import Reading


def test_content_tokens_have_their_vector_from_the_start():
    """Content tokens begin as (MᵀM)^½ · row (initialize.py), whose rotation is M · row."""
    generator = torch.Generator().manual_seed(0)
    to_vector = torch.randn(6, 9, generator=generator)
    rows = torch.randn(20, 9, generator=generator)
    values, vectors = torch.linalg.eigh(to_vector.T @ to_vector)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    goal = normalize(rows @ to_vector.T, dim=-1)
    loss, likeness = Reading(to_vector).loss(rows @ root, goal)
    assert likeness == pytest.approx(1, abs=1e-4) and float(loss.detach()) < 1e-4
    _, other = Reading(to_vector).loss(rows @ root, goal.roll(1, 0))
    assert other < 0.9, "another item's"


def test_items_without_a_vector_do_not_count():
    reading = Reading(torch.eye(4))
    states, vectors = (
        torch.eye(4)[:2].requires_grad_(),
        torch.stack([torch.eye(4)[1], torch.zeros(4)]),
    )
    loss, likeness = reading.loss(states, vectors)
    loss.backward()
    assert likeness == 0 and states.grad[0].any() and not states.grad[1].any()
    loss, likeness = reading.loss(states, torch.zeros(2, 4))
    loss.backward()
    assert float(loss.detach()) == 0 and likeness == 0


def test_texts_are_encoded_once_and_as_they_are_alone(tokenizer, monkeypatch):
    texts = ["a red apple", "", "<answer> is text", "blue \ud83d bird", "a red apple"]
    calls = []

    def counted(tokenizer, new):
        calls.append(list(new))
        return encode_texts(tokenizer, new)

    monkeypatch.setattr(known_texts, "encode_texts", counted)
    known = KnownTexts(tokenizer, most=3)
    known.learn(texts)
    assert calls == [texts[:4]]
    assert [known.ids(text) for text in texts] == [encode_text(tokenizer, t)[:3] for t in texts]
    known.learn(texts)
    assert [call for call in calls[1:] if call] == [] and encode_texts(tokenizer, []) == []
