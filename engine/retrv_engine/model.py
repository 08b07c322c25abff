"""What engines need of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn


class Parameters(Protocol):
    """A model whose weights can be replaced."""

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]: ...


class LanguageModel(Parameters, Protocol):
    """A Hugging Face decoder between a table of embeddings and an output head."""

    @property
    def language_model(self) -> nn.Module:
        """The decoder without its head; takes ``inputs_embeds`` and M-RoPE ``position_ids``."""
        ...

    def get_input_embeddings(self) -> nn.Module:
        """The table of token embeddings."""
        ...

    def get_output_embeddings(self) -> nn.Module:
        """The head: hidden rows to logits."""
        ...


@torch.no_grad()
def load_weights(model: Parameters, weights: Mapping[str, Tensor]) -> None:
    """Copies values into a model's parameters, by name.

    Raises:
        ValueError: a name or a shape that the model does not have; nothing is changed then.
    """
    own = dict(model.named_parameters())
    for name, value in weights.items():
        if name not in own:
            raise ValueError(f"the model has no parameter {name!r}")
        if own[name].shape != value.shape:
            shapes = f"{tuple(own[name].shape)}, not {tuple(value.shape)}"
            raise ValueError(f"{name} is of shape {shapes}")
    for name, value in weights.items():
        own[name].copy_(value)  # not into .data: copies made of it are renewed by its version
