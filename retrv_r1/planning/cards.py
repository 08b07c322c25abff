"""GPUs by their datasheets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """A GPU.

    Args:
        memory: memory in GB (10⁹ bytes).
        tflops: dense bfloat16 products, 10¹² operations a second.
        bandwidth: memory bandwidth in GB/s.
    """

    name: str
    memory: float
    tflops: float
    bandwidth: float


CARDS = {
    "a100": Card("A100 SXM 80 GB", 80, 312, 2039),
    "h100": Card("H100 SXM 80 GB", 80, 989, 3350),
    "h200": Card("H200 SXM 141 GB", 141, 989, 4800),
    "b200": Card("B200 180 GB", 180, 2250, 8000),
    "l4": Card("L4 24 GB", 24, 121, 300),
}
"""NVIDIA's datasheets; numbers with sparsity are halved."""
