"""New values for a model's parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn


class HasParameters(Protocol):
    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]: ...


@torch.no_grad()
def load_weights(model: HasParameters, weights: Mapping[str, Tensor]) -> None:
    """Copies values into a model's parameters, by name.

    Raises:
        ValueError: a name or a shape that the model has not; nothing is changed then.
    """
    own = dict(model.named_parameters())
    for name, value in weights.items():
        if name not in own:
            raise ValueError(f"the model has no parameter {name!r}")
        if own[name].shape != value.shape:
            shapes = f"{tuple(own[name].shape)}, not {tuple(value.shape)}"
            raise ValueError(f"{name} is of shape {shapes}")
    for name, value in weights.items():
        own[name].copy_(value)  # not its data: whoever keeps what was made of it asks its version
