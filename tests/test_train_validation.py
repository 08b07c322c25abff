"""Validation in training: the first stage's own lists, and what counts as a hit."""

from __future__ import annotations

import numpy as np
import pytest

from retrv_r1.train.entry_vectors import Vectors
from retrv_r1.train.lists import ListCollator
from retrv_r1.train.validation import ListValidation

pytest_plugins = ["training_fixtures"]


@pytest.fixture
def collator(processor) -> ListCollator:
    collator = ListCollator(processor)
    side = 16 // (processor.image_processor.patch_size * processor.image_processor.merge_size)
    collator.grid = (side, side)
    return collator


def oracle(corpus) -> dict[str, Vectors]:
    """Vectors of a first stage that finds one of each query's positives, always."""
    found = {}
    for name, cell in corpus.cells.items():
        pool = np.eye(len(cell.pool))
        queries = np.stack([pool[known[0]] for known in cell.positives])
        found[name] = Vectors(queries, pool)
    return found


def test_a_perfect_first_stage_hands_over_every_answer(corpus, collator):
    validation = ListValidation(corpus, oracle(corpus), collator, k=3, queries=4)
    assert validation.first_stage == 1
    for name, lists in validation.lists.items():
        cell = corpus.cells[name]
        assert len(lists) == validation.sizes[name] == min(4, len(cell.queries))
        for example in lists:
            row = next(i for i, query in enumerate(cell.queries) if query is example.query)
            right = {cell.pool[n].key for n in cell.positives[row]}
            shown = [c.key for c in example.candidates]
            assert len(shown) <= 3 and shown[example.answer] in right
            assert sum(key in right for key in shown) == 1


def test_a_query_whose_answer_was_not_retrieved_counts_as_missed(corpus, collator):
    vectors = {}
    for name, cell in corpus.cells.items():
        pool = np.eye(len(cell.pool))
        wrong = [np.setdiff1d(range(len(cell.pool)), known)[0] for known in cell.positives]
        vectors[name] = Vectors(np.stack([pool[n] for n in wrong]), pool)
    validation = ListValidation(corpus, vectors, collator, k=1, queries=4)
    assert validation.first_stage == 0
    assert all(lists == [] for lists in validation.lists.values())
    assert all(size > 0 for size in validation.sizes.values())
