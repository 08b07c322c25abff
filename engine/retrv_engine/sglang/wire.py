"""How pieces travel to a server: token ids, and an item for each piece of rows."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from retrv_engine.request import Piece, advance_of, positions_of

Item: TypeAlias = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that the server encodes, as a piece beside tokens and :class:`FeatureRows`.

    Args:
        patches: ``[p, patch_dim]``, as the tower takes them.
        grid: of the patches, (t, h, w).
        merge: patches on a side that become one row.
        key: hash of the picture, 63 bits. The server's rows are forgotten when its weights change.
    """

    patches: Tensor
    grid: tuple[int, int, int]
    merge: int
    key: int

    def __post_init__(self) -> None:
        t, h, w = self.grid
        if t * h * w != len(self.patches) or h % self.merge or w % self.merge:
            raise ValueError(f"{len(self.patches)} patches are no grid {self.grid} to be merged")

    @property
    def length(self) -> int:
        """Rows that it becomes."""
        return len(self.patches) // self.merge**2

    @property
    def width(self) -> int:
        """Of the rows' grid."""
        return self.grid[2] // self.merge

    @property
    def advance(self) -> int:
        """How far the position moves on behind the rows."""
        return advance_of(self.length, self.width)


class Prompt:
    """Rows in the form in which they are sent; it grows as a request goes on.

    Attributes:
        ids: a token for each row, 0 where an item's stand.
        items: of what is no token, in order, each with its first row.
    """

    def __init__(self, pieces: Sequence[Piece | Picture] = ()) -> None:
        self.ids: list[int] = []
        self.items: list[Item] = []
        self.extend(pieces)

    @property
    def keys(self) -> list[int]:
        """What each row holds: prompts that begin alike have keys that do."""
        keys = list(self.ids)
        for item in self.items:
            first, length = item["first"], item["length"]
            keys[first : first + length] = [-1 - item["key"]] * length
        return keys

    def extend(self, pieces: Sequence[Piece | Picture]) -> None:
        """Appends pieces behind the rows there are."""
        for piece in pieces:
            if isinstance(piece, int):
                self.ids.append(piece)
                continue
            item: Item = {"first": len(self.ids), "length": piece.length, "width": piece.width}
            if isinstance(piece, Picture):
                item |= {"patches": pack(piece.patches), "grid": list(piece.grid)}
            else:
                item["rows"] = pack(piece.rows)
            self.items.append(item | {"key": piece.key})
            self.ids += [0] * piece.length


def pack(tensor: Tensor) -> dict[str, Any]:
    """A tensor as JSON values."""
    flat = tensor.detach().cpu().contiguous()
    data = base64.b64encode(flat.view(torch.uint8).numpy().tobytes()).decode()
    return {"dtype": str(flat.dtype).removeprefix("torch."), "shape": [*flat.shape], "data": data}


def unpack(values: Mapping[str, Any]) -> Tensor:
    """A tensor from :func:`pack`; it is written to by nobody.

    Raises:
        ValueError: its bytes are not as many as its shape says.
    """
    raw = np.frombuffer(bytearray(base64.b64decode(values["data"])), np.uint8)
    dtype = getattr(torch, values["dtype"])
    return torch.from_numpy(raw).view(dtype).view(*values["shape"])


def places(items: Sequence[Item], rows: int) -> Tensor:
    """M-RoPE positions ``[3, rows]`` of a prompt, as all engines count them.

    Raises:
        ValueError: items overlap, or stand outside.
    """
    positions: list[Tensor] = []
    row = position = 0
    for item in items:
        first, length, width = item["first"], item["length"], item["width"]
        if not row <= first <= first + length <= rows:
            raise ValueError(f"an item at rows {first} to {first + length} of {row} to {rows}")
        positions += [positions_of(position, first - row)]
        position += first - row
        positions += [positions_of(position, length, width)]
        position += advance_of(length, width)
        row = first + length
    return torch.cat([*positions, positions_of(position, rows - row)], 1)
