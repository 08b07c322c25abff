"""All rows of a request, computed or still to compute: their content and their positions."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from retrv_engine.request import Piece

STEP = 0x9E3779B97F4A7C15
MASK = 2**63 - 1


class PlacedPiece(NamedTuple):
    """A piece in a context, or consecutive rows of one.

    Attributes:
        table: table of the rows; None for a token, whose row is in the table of embeddings.
        row: index of the first row in the table.
        length: number of rows.
        start: index of the first row within the piece.
        position: position of the piece's first row.
        width: width of the piece's grid, or 0 for text positions.
    """

    table: Tensor | None
    row: int
    length: int
    start: int
    position: int
    width: int


class Context:
    """The rows of a request in order, with their keys for the radix tree.

    The key of a token is its id. The key of row i of feature rows is a negative hash of their key,
    their width (which decides the positions of these and later rows) and i.

    Attributes:
        keys: keys of the rows.
        position: position after the last row.
    """

    def __init__(self) -> None:
        self.keys: list[int] = []
        self.position = 0
        self._pieces: list[PlacedPiece] = []
        self._starts: list[int] = []

    def __len__(self) -> int:
        return len(self.keys)

    def extend(self, pieces: Sequence[Piece]) -> None:
        """Appends pieces."""
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
