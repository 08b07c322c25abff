"""What a GPU's memory is used for, in the order in which it is taken.

1. Weights, when the model is moved to the GPU.
2. The engine's key-value cache, when the engine is made: ``EngineConfig.cache_bytes``, by default a
   share of the memory that is free then.
3. Of the memory that is free at the first request, a quarter for feature rows (at least 512 MiB,
   enough for 50 candidates of 1,280 rows at 7B's width, if that is no more than half) and a quarter
   for one batch of the vision tower. The rest is for rows in the decoder, logits, and memory that
   PyTorch's allocator cannot hand out.

On a CPU, where memory is taken as it is needed, all of these are constants.
"""

from __future__ import annotations

from typing import Any

import torch

MIB = 2**20
CPU_FEATURES = 256 * MIB
LEAST_FEATURES = 512 * MIB
MOST_ROWS, LEAST_ROWS = 2**14, 2**11
"""Most and fewest feature rows of one batch of the tower; for a GPU both are estimates."""


def free_bytes(device: torch.device) -> int:
    """Bytes of a GPU that are free, or that PyTorch holds unused."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + held)


def feature_bytes(device: torch.device) -> int:
    """Bytes of feature rows to keep on a device."""
    if device.type != "cuda":
        return CPU_FEATURES
    free = free_bytes(device)
    return max(free // 4, min(LEAST_FEATURES, free // 2))


def tower_rows_at_once(visual: Any, device: torch.device) -> int:
    """Most feature rows that one batch of a vision tower may make.

    A row is ``spatial_merge_size²`` patches. A patch is assumed to need eight widths of the tower
    and three of its MLP at once; no GPU has confirmed this estimate.
    """
    if device.type != "cuda":
        return MOST_ROWS
    config = visual.config
    numbers = 8 * config.hidden_size + 3 * config.intermediate_size
    row = config.spatial_merge_size**2 * numbers * visual.dtype.itemsize
    return max(LEAST_ROWS, min(MOST_ROWS, free_bytes(device) // 4 // row))
