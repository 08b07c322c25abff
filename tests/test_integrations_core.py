"""The core of the integrations, and the form of CrossEncoder: pairs become lists of a query."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from retrv_r1 import ItemError, Reranker
from retrv_r1.integrations.core import IntegrationMissing, Ranker, library
from retrv_r1.integrations.cross_encoder import CrossEncoder

WORDS = ["a red apple", "a blue bird", "the sky", "an apple in the sky"]


@pytest.fixture(scope="module")
def reranker(model, processor):
    with Reranker(model, processor) as made:
        yield made


def scores_of(reranker, query, items):
    ranking = reranker.rank(query, items, mode="fast")
    return [row.score for row in sorted(ranking, key=lambda row: row.index)]


def test_pairs_of_equal_queries_are_one_list_wherever_they_stand(reranker, picture):
    image = picture(1)
    pairs = [
        ("apple", WORDS[0]),
        (image, WORDS[2]),
        ("apple", image),
        ("bird", WORDS[1]),
        (image.copy(), WORDS[3]),
        ("apple", {"text": WORDS[1], "image": picture(2)}),
        ("apple", WORDS[0]),
    ]
    scores = Ranker(reranker).score_pairs(pairs)
    apple = scores_of(reranker, "apple", [pairs[k][1] for k in (0, 2, 5, 6)])
    pictures = scores_of(reranker, image, [WORDS[2], WORDS[3]])
    (alone,) = scores_of(reranker, "bird", [WORDS[1]])
    expected = [apple[0], pictures[0], apple[1], alone, pictures[1], apple[2], apple[3]]
    assert scores == pytest.approx(expected, abs=1e-6)
    assert len(set(expected)) > 4


def test_no_pairs_have_no_scores(reranker):
    assert Ranker(reranker).score_pairs([]) == []


@pytest.mark.parametrize(
    ("pair", "message"),
    [("ab", "pair 1: a pair is"), (("q",), "pair 1: a pair is"), (("q", ""), "pair 1: an item")],
)
def test_a_bad_pair_is_named(reranker, pair, message):
    with pytest.raises(ItemError, match=message):
        Ranker(reranker).score_pairs([("q", "d"), pair])


def test_mode_and_instruction_reach_the_reranker(reranker):
    assert Ranker(reranker, "reason").rank("apple", WORDS).mode == "reason"
    plain = Ranker(reranker).rank("apple", WORDS, top_k=2)
    asked = Ranker(reranker, instruction="Find the sky.").rank("apple", WORDS, top_k=2)
    overridden = Ranker(reranker).rank("apple", WORDS, top_k=2, instruction="Find the sky.")
    assert len(plain) == 2 and plain.mode == "fast"
    assert asked[0].score == pytest.approx(overridden[0].score, abs=1e-6)
    assert asked[0].score != pytest.approx(plain[0].score, abs=1e-6)


def test_a_missing_library_is_named_with_its_extra():
    with (
        pytest.raises(IntegrationMissing, match=r"package no_such_library.*\[langchain\]"),
        library("langchain", "no_such_library"),
    ):
        importlib.import_module("no_such_library.part")
    with pytest.raises(ModuleNotFoundError) as broken, library("langchain", "langchain_core"):
        importlib.import_module("no_such_library")
    assert not isinstance(broken.value, IntegrationMissing)


def test_cross_encoder_predicts_in_every_asked_form(reranker):
    encoder = CrossEncoder(reranker)
    pairs = [["apple", word] for word in WORDS]
    expected = scores_of(reranker, "apple", WORDS)
    found = encoder.predict(pairs, batch_size=2, show_progress_bar=False)
    assert isinstance(found, np.ndarray) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    tensor = encoder.predict(pairs, convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor) and tensor.tolist() == found.tolist()
    tensors = encoder.predict(pairs, convert_to_numpy=False)
    assert isinstance(tensors, list) and [float(t) for t in tensors] == found.tolist()
    single = encoder.predict(("apple", WORDS[0]))
    assert isinstance(single, np.float32) and encoder.predict([]).shape == (0,)
    assert encoder.predict([("apple", WORDS[0])]).tolist() == [single]


def test_cross_encoder_ranks_texts_and_pictures(reranker, picture):
    documents = [WORDS[0], picture(1), {"text": WORDS[1], "image": picture(2)}]
    rows = CrossEncoder(reranker).rank("bird", documents, top_k=2, return_documents=True)
    ranking = reranker.rank("bird", documents, mode="fast", top_k=2)
    assert [(row["corpus_id"], row["score"]) for row in rows] == [
        (row.index, pytest.approx(row.score)) for row in ranking
    ]
    assert all(row["text"] is documents[row["corpus_id"]] for row in rows)
    assert "text" not in CrossEncoder(reranker).rank("bird", documents)[0]


def test_cross_encoder_refuses_what_would_change_scores(reranker):
    encoder = CrossEncoder(reranker)
    encoder.predict([("a", "b")], apply_softmax=False, pool=None)
    with pytest.raises(ValueError, match="no activation_fn"):
        encoder.predict([("a", "b")], activation_fn=torch.nn.Sigmoid())
    with pytest.raises(ValueError, match="no prompt_name"):
        encoder.rank("a", ["b"], prompt_name="query")
