"""Chains of thought: one wording that reads back to what was said; the rest is damage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrv_r1.model.chains import Chain, ChainPart, content_words, parse, phrases, words
from retrv_r1.model.tokens import encode_text
from retrv_r1.rerank.ordering import reasoning_text

WHOLE = Chain(
    "violin", ((2, "guitar"), (6, "violin")), ((6, "violin with a bow"), (2, "guitar")), 6
)


def test_a_chain_is_written_in_one_wording():
    assert WHOLE.text() == (
        "ideal: violin. close: [3] guitar, [7] violin. inspect [7] violin with a bow; "
        "inspect [3] guitar; best: [7]"
    )
    assert Chain("A dog!").text() == "ideal: a dog."
    assert Chain("a", best=0).text() == "ideal: a. best: [1]"
    assert Chain("a", ((4, "B-c"),)).parts() == [
        ChainPart("text", "ideal: a. close:"),
        ChainPart("label", candidate=4),
        ChainPart("text", " b c."),
    ]


said = st.text(max_size=30).map(words).filter(bool)
named = st.lists(st.tuples(st.integers(0, 127), said), max_size=4).map(tuple)


@given(ideal=said, near=named, seen=named, best=st.none() | st.integers(0, 127))
def test_what_a_chain_says_reads_back(ideal, near, seen, best):
    chain = Chain(ideal, near, seen, best)
    assert parse(chain.text()) == chain
    assert chain.whole


def test_written_tokens_read_back(processor):
    tokens, numbers = processor.tokens, list(range(10, 20))
    written = [tokens.think_start]
    for part in WHOLE.parts():
        label = tokens.labels[part.candidate]
        if part.kind == "text":
            written += encode_text(processor.tokenizer, part.text)
        elif part.kind == "label":
            written.append(label)
        else:
            written += [tokens.inspect_start, label, tokens.inspect_end]
    written += [tokens.think_end, tokens.answer_start, tokens.labels[6], tokens.answer_end]
    moved = Chain(
        WHOLE.ideal,
        tuple((k + 10, name) for k, name in WHOLE.near),
        tuple((k + 10, name) for k, name in WHOLE.seen),
        16,
    )
    assert parse(reasoning_text(processor, written, numbers)) == moved


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("", Chain("")),
        ("nonsense", Chain("", damage=("nonsense",))),
        ("ideal: cat. so [2]", Chain("cat", damage=("so [2]",))),
        ("ideal: cat best: [2]", Chain("", best=1, damage=("ideal: cat",))),
        # A name is missing, so the clause is not of the form; what follows is.
        (
            "ideal: cat. close: [3] [4] dog. best: [4]",
            Chain("cat", best=3, damage=("close: [3] [4] dog.",)),
        ),
        # Clauses that stand twice, or after the decision.
        (
            "ideal: cat. ideal: dog. best: [1] inspect [2] cat;",
            Chain("cat", best=0, damage=("ideal: dog.", "inspect [2] cat;")),
        ),
        (
            "ideal: cat. inspect [2] black cat; close: [1] dog. best: [2]",
            Chain("cat", (), ((1, "black cat"),), 1, ("close: [1] dog.",)),
        ),
        # The shipped model's earlier wording.
        (
            "wanted: cat. close: [3] [4]. inspect [3] that is a bus; so [4]",
            Chain(
                "",
                (),
                ((2, "that is a bus"),),
                damage=("wanted: cat. close: [3] [4].", "so [4]"),
            ),
        ),
    ],
)
def test_what_is_not_in_the_form_is_reported_as_damage(text, read):
    assert parse(text) == read
    assert not read.whole


def test_a_chain_without_words_cannot_be_written():
    for chain in (Chain("…"), Chain("a", ((1, "--"),)), Chain("a", (), ((1, ""),))):
        with pytest.raises(ValueError, match="no letters or digits"):
            chain.parts()


def test_equal_things_have_equal_words():
    assert words("Arrow-left_2") == words("arrow left 2") == "arrow left 2"
    assert words("Crème brûlée") == "crème brûlée"
    assert words("हिन्दी") == "हिन्दी"
    assert words("John\u2019s") == "john's"
    assert words(" ".join("abcdefghij")) == "a b c d e f g h"


@pytest.mark.parametrize(
    ("query", "content"),
    [
        ("a picture of a violin", "violin"),
        ("Violin!", "violin"),
        ("the violin icon", "violin"),
        ("to delete a user", "delete user"),
        ("find the icon that means delete", "delete"),
        ("show me the red apple, please", "red apple"),
        ("search", "search"),
        ("search icon", "search"),
        ("icon of an image", "image"),
        ("a picture", "picture"),
        ("stop sign", "stop sign"),
        ("", ""),
    ],
)
def test_content_words_of_a_query_do_not_depend_on_its_wrapping(query, content):
    assert content_words(query) == content


def test_phrases_are_all_that_chains_are_written_of():
    text = WHOLE.text().replace("inspect", "")
    for said in ("violin with a bow", "guitar", "violin", *phrases()):
        text = text.replace(said, "")
    assert set(text) <= set(" [37]")


def test_words_that_are_to_stay_stay_where_a_text_is_cut():
    long = "a b c d e f g h i j"
    assert words(long) == "a b c d e f g h"
    assert words(long, keep={"j", "b"}) == "a b c d e f g j"
    assert words("b a j", keep={"j"}) == "b a j"
    assert content_words(f"a picture of {long}", keep=["i"]) == "b c d e f g h i"
