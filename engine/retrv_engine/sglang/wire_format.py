"""The wire format between our process and an SGLang server.

Both sides import this module. It must not import transformers, which a process of SGLang can import
only after it has been prepared.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from retrv_engine.request import Piece, advance_of, positions_of

LIKELIEST = "likeliest"
"""Key in an answer's ``meta_info``: for each written token, the likeliest one before bans."""
SAMPLES = 16
"""Number of values of a parameter that are compared, to see whether weights are the same."""
STOP_WITH_STDIN = "--stop-with-stdin"
"""Server argument: stop when standard input is closed."""

WireItem: TypeAlias = dict[str, Any]
"""Feature rows as JSON values: ``first`` row in the prompt, ``length``, ``width``, ``key``,
``rows``."""


class WirePrompt:
    """A prompt in the form in which it is sent; it grows while its request runs.

    Attributes:
        ids: one token per row, 0 in the rows of an item.
        items: feature rows, in order.
    """

    def __init__(self, pieces: Sequence[Piece] = ()) -> None:
        self.ids: list[int] = []
        self.items: list[WireItem] = []
        self.extend(pieces)

    @property
    def keys(self) -> list[int]:
        """One number per row: prompts with a shared prefix have keys with a shared prefix."""
        keys = list(self.ids)
        for item in self.items:
            first, length = item["first"], item["length"]
            keys[first : first + length] = [-1 - item["key"]] * length
        return keys

    def extend(self, pieces: Sequence[Piece]) -> None:
        """Appends pieces."""
        for piece in pieces:
            if isinstance(piece, int):
                self.ids.append(piece)
                continue
            place = dict(first=len(self.ids), length=piece.length, width=piece.width)
            self.items.append(dict(place, key=piece.key, rows=tensor_to_json(piece.rows)))
            self.ids += [0] * piece.length


def tensor_to_json(tensor: Tensor) -> dict[str, Any]:
    """A tensor as JSON values."""
    flat = tensor.detach().cpu().contiguous()
    data = base64.b64encode(flat.view(torch.uint8).numpy().tobytes()).decode()
    return {"dtype": str(flat.dtype).removeprefix("torch."), "shape": [*flat.shape], "data": data}


def tensor_from_json(values: Mapping[str, Any]) -> Tensor:
    """The tensor that :func:`tensor_to_json` was given.

    Raises:
        ValueError: the number of bytes does not fit the shape.
    """
    raw = np.frombuffer(bytearray(base64.b64decode(values["data"])), np.uint8)
    dtype = getattr(torch, values["dtype"])
    return torch.from_numpy(raw).view(dtype).view(*values["shape"])


def sample_of(parameter: Tensor) -> list[float]:
    """Up to ``SAMPLES`` values of a parameter, from all its rows and columns."""
    # An odd stride: one that a row's length is a multiple of would stay in few columns.
    stride = max(1, parameter.numel() // SAMPLES) | 1
    values: list[float] = parameter.detach().flatten()[::stride][:SAMPLES].float().tolist()
    return values


def mrope_positions(items: Sequence[WireItem], rows: int) -> Tensor:
    """M-RoPE positions ``[3, rows]`` of a prompt, counted as in all engines.

    Raises:
        ValueError: items overlap, or lie outside the prompt.
    """
    positions: list[Tensor] = []
    row = position = 0
    for item in items:
        first, length, width = item["first"], item["length"], item["width"]
        if not row <= first <= first + length <= rows:
            raise ValueError(
                f"an item at rows {first} to {first + length} must lie in rows {row} to {rows}: "
                "send items in order, without overlap"
            )
        positions += [positions_of(position, first - row)]
        position += first - row
        positions += [positions_of(position, length, width)]
        position += advance_of(length, width)
        row = first + length
    return torch.cat([*positions, positions_of(position, rows - row)], 1)
