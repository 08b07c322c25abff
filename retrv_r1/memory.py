"""Who takes a GPU's memory, and in which order.

1. The weights, when the model is moved there.
2. The engine's key-value cache, when the engine is made: ``EngineConfig.cache_bytes``, by default a
   share of what is free then, so that nothing after it can be promised that share.
3. What is free at the first request: a quarter may be feature rows (but 512 MiB, enough for 50
   candidates of 1,280 rows at 7B's width, if half is as much), a quarter what the vision tower
   makes of one batch. The rest is for rows on their way through the decoder, logits, and what
   PyTorch's allocator cannot give out.

On a CPU, where memory is taken as it is needed, all of these are constants.
"""

from __future__ import annotations

from typing import Any

import torch

MIB = 2**20
CPU_FEATURES = 256 * MIB
LEAST_FEATURES = 512 * MIB
MOST_ROWS, LEAST_ROWS = 2**14, 2**11
"""Feature rows of one batch of the tower, at most and at least; for a GPU both are estimates."""


def free_bytes(device: torch.device) -> int:
    """What can still be taken on a GPU: free, or held by PyTorch without use."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + held)


def feature_bytes(device: torch.device) -> int:
    """Feature rows that are kept where the model runs, bytes."""
    if device.type != "cuda":
        return CPU_FEATURES
    free = free_bytes(device)
    return max(free // 4, min(LEAST_FEATURES, free // 2))


def tower_rows_at_once(visual: Any, device: torch.device) -> int:
    """Feature rows that one batch of a vision tower makes, at most.

    A row is ``spatial_merge_size²`` patches; a patch is taken to need eight widths of the tower and
    three of its MLP at once, an estimate that no GPU has confirmed.
    """
    if device.type != "cuda":
        return MOST_ROWS
    config = visual.config
    numbers = 8 * config.hidden_size + 3 * config.intermediate_size
    row = config.spatial_merge_size**2 * numbers * visual.dtype.itemsize
    return max(LEAST_ROWS, min(MOST_ROWS, free_bytes(device) // 4 // row))
