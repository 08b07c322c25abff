"""What ``import retrv_r1`` gives: names, lazily where they are heavy, and handy results."""

from __future__ import annotations

import subprocess
import sys

import pytest

import retrv_r1
from retrv_r1 import Item, RankedItem, RankedResults, Reranker


def test_every_public_name_is_there_and_listed():
    assert set(retrv_r1.__all__) <= set(dir(retrv_r1))
    for name in retrv_r1.__all__:
        assert getattr(retrv_r1, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Reranked'"):
        retrv_r1.Reranked  # noqa: B018


def test_the_import_is_light():
    code = "import sys, retrv_r1; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("item", "name", "text"),
    [
        (Item(image="pictures/cat.png", text="a cat", id="7"), "cat.png", "a cat"),
        (Item(text="a  red\napple", id="7"), "a red apple", "a  red\napple"),
        (Item(text="x" * 100), "x" * 59 + "…", "x" * 100),
        (Item(image=b"...", id="7"), "7", ""),
        (Item(image=b"..."), "candidate 3", ""),
    ],
)
def test_a_ranked_item_has_a_name_and_a_text(item, name, text):
    ranked = RankedItem(3, 0.5, item)
    assert (ranked.name, ranked.text) == (name, text)


def test_top_gives_the_best():
    ranking = tuple(RankedItem(k, 1 / (k + 1), Item(text=f"item {k}")) for k in range(3))
    results = RankedResults(Item(text="q"), 0, ranking)
    assert results.top(2) == [*ranking[:2]] and results.top(9) == [*ranking]
    with pytest.raises(ValueError, match="n must be at least 1"):
        results.top(0)


def test_a_reranker_closes_its_engine(model, processor, monkeypatch):
    closed = []
    with Reranker(model, processor) as reranker:
        monkeypatch.setattr(reranker.engine, "close", lambda: closed.append(True))
        assert not closed
    assert closed == [True]
