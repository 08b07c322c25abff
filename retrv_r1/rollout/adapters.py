"""LoRA adapters while an engine samples.

An engine of this process reads the weights of the layers themselves. So adapters are added to them
while it samples, and taken out again for training: nothing is copied, and every engine runs as fast
as without adapters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Adds a model's adapters (PEFT's) to its weights inside; does nothing without adapters.

    Each time may leave the weights changed by the rounding of an addition.
    """
    found: Any = (module for module in model.modules() if hasattr(module, "merged_adapters"))
    adapted = [module for module in found if not module.merged]
    with torch.no_grad():
        for module in adapted:
            module.merge()
    try:
        yield
    finally:
        with torch.no_grad():
            for module in adapted:
                module.unmerge()
