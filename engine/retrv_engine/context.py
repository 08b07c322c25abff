"""All rows of a sequence, fed or still to feed: what each holds and where it stands."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from retrv_engine.request import Piece

STEP = 0x9E3779B97F4A7C15
MASK = 2**63 - 1


class PlacedPiece(NamedTuple):
    """Rows of one piece.

    Attributes:
        table: where feature rows are; None for a token, whose row is in the embeddings' table.
        row: the first of them there.
        start: number of the first row within the piece.
        position: of the piece's first row.
        width: of the grid, 0 for text positions.
    """

    table: Tensor | None
    row: int
    length: int
    start: int
    position: int
    width: int


class Context:
    """Rows in order, with their keys for the radix tree.

    A token's key is its id; that of row i of feature rows is a negative number, of their key, their
    width (which decides where they and what follows stand) and i.
    """

    def __init__(self) -> None:
        self.keys: list[int] = []
        self.position = 0
        self._pieces: list[PlacedPiece] = []
        self._starts: list[int] = []

    def __len__(self) -> int:
        return len(self.keys)

    def extend(self, pieces: Sequence[Piece]) -> None:
        """Appends pieces behind the rows there are."""
        for piece in pieces:
            self._starts.append(len(self.keys))
            if isinstance(piece, int):
                self._pieces.append(PlacedPiece(None, piece, 1, 0, self.position, 0))
                self.keys.append(piece)
                self.position += 1
                continue
            self._pieces.append(
                PlacedPiece(piece.table, piece.first, piece.length, 0, self.position, piece.width)
            )
            key = piece.key ^ (piece.width * STEP)
            self.keys += [-1 - ((key + i * STEP) & MASK) for i in range(piece.length)]
            self.position += piece.advance

    def placed(self, first: int, stop: int) -> Iterator[PlacedPiece]:
        """Rows ``first`` to ``stop``, piece by piece; the first and the last may be cut."""
        i = bisect_right(self._starts, first) - 1
        while first < stop:
            piece = self._pieces[i]
            start = first - self._starts[i]
            length = min(piece.length - start, stop - first)
            yield piece._replace(row=piece.row + start, start=start, length=length)
            first, i = first + length, i + 1
