"""The rows of a request: their keys, and the pieces they are parts of."""

from __future__ import annotations

import torch

from retrv_engine import FeatureRows
from retrv_engine.context import Context


def test_rows_in_a_grid_are_not_those_in_a_line():
    """Their positions differ, so that their keys and values do."""
    contexts = [Context() for _ in range(2)]
    for context, width in zip(contexts, (0, 4), strict=True):
        context.extend([FeatureRows(torch.zeros(12, 1), 0, 12, 77, width)])
    assert not set(contexts[0].keys) & set(contexts[1].keys)


def test_pieces_are_cut_anywhere():
    context, table = Context(), torch.zeros(20, 1)
    context.extend([5, FeatureRows(table, 3, 12, 99, 4), 6, FeatureRows(table, 15, 3, 7)])
    assert len(context) == 17 and context.position == 1 + 4 + 1 + 3
    for first in range(17):
        for stop in range(first + 1, 18):
            rows = []
            for piece in context.placed(first, stop):
                at = piece.row if piece.table is None else 100 + piece.row
                rows += [at] * piece.length if piece.table is None else range(at, at + piece.length)
            assert rows == [5, *range(103, 115), 6, *range(115, 118)][first:stop]
    assert len(set(context.keys)) == 17 and context.keys[0] == 5 and context.keys[13] == 6
    assert all(key < 0 for key in context.keys[1:13])
