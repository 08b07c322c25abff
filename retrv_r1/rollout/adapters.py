"""LoRA adapters while an engine samples.

An engine of this process reads the weights of the layers themselves. So adapters are added to them
while it samples, and the weights are put back for training: every engine runs as fast as without
adapters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def adapted(model: nn.Module) -> list[Any]:
    """The layers of a model that have adapters (PEFT's)."""
    return [module for module in model.modules() if hasattr(module, "merged_adapters")]


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Adds a model's adapters to its weights inside; does nothing without adapters.

    The weights are kept and put back, since taking adapters out again would leave rounding behind,
    more of it each time, and in half precision much.
    """
    layers = [(layer, layer.get_base_layer().weight) for layer in adapted(model)]
    layers = [(layer, weight) for layer, weight in layers if not layer.merged]
    kept = [weight.detach().clone() for _, weight in layers]
    with torch.no_grad():
        for layer, _ in layers:
            layer.merge()
    try:
        yield
    finally:
        with torch.no_grad():
            for (layer, weight), before in zip(layers, kept, strict=True):
                layer.unmerge()
                weight.copy_(before)
