"""The weights that a server has a copy of, and whether two copies are the same."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from retrv_engine.base import EngineDied
from retrv_engine.model import LanguageModel
from retrv_engine.sglang.calls import HOW_TO_SERVE
from retrv_engine.sglang.client import Client
from retrv_engine.sglang.wire_format import sample_of

ROUNDING = 2.0**-7
"""Relative difference of values that count as the same: the server's dtype may be bfloat16."""
TINY = 1e-7
"""Likewise, absolute: the smallest values of float16."""


def parameters_of(model: LanguageModel) -> dict[str, Tensor]:
    """Parameters that a server uses, by name: those of the decoder and its head."""
    modules = model.language_model, model.get_output_embeddings()
    used = {id(one) for module in modules for one in module.parameters()}
    return {name: one.data for name, one in model.named_parameters() if id(one) in used}


async def differing_name(client: Client, model: LanguageModel) -> str | None:
    """Name of a parameter that differs between a model and a server, or None.

    A few values of each parameter are compared, so a change of a few others is not found.

    Raises:
        EngineDied: the server cannot say which weights it has.
    """
    own = parameters_of(model)
    try:
        replicas = await client.samples(list(own))
        return await asyncio.to_thread(_first_difference, own, replicas)
    except (ValueError, LookupError, TypeError) as error:
        raise EngineDied(
            f"the server at {client.url} cannot say which weights it has ({error}): {HOW_TO_SERVE}"
        ) from error


def _first_difference(
    own: Mapping[str, Tensor], replicas: Sequence[Sequence[Sequence[float]]]
) -> str | None:
    for samples in replicas:
        for (name, value), sample in zip(own.items(), samples, strict=True):
            here, there = torch.tensor(sample_of(value)), torch.tensor(sample)
            if here.shape != there.shape or not torch.allclose(here, there, ROUNDING, TINY):
                return name
    return None
