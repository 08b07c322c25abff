"""Models of real size with random weights, and the sizes of what is measured.

Speed does not depend on the values of weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Qwen2_5_VLConfig

from bench.device import Device
from bench.suites.engine.workload import Workload
from bench.suites.kernels.entries import QWEN_3B, QWEN_7B, TINY, Model
from retrv_r1.model.backbone import qwen_config
from retrv_r1.model.checkpoint import load_checkpoint
from retrv_r1.model.config import RetrvR1Config
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration


@dataclass(frozen=True)
class Size:
    """Sizes of a Qwen2.5-VL: language model first, then vision tower."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool
    tower: tuple[int, int, int, int] = (32, 1280, 3420, 16)  # layers, width, inner width, heads


SIZES = {
    "3B": Size(2048, 36, 16, 2, 11008, 151_936, True),
    "7B": Size(3584, 28, 28, 4, 18944, 152_064, False),
    # Small enough for a CPU, with the heads of 3B.
    "3B, 2 layers": Size(2048, 2, 16, 2, 512, 16384, True, (2, 64, 64, 2)),
}


@dataclass(frozen=True)
class Shape:
    """Number of candidates, rows of each at full length, and the width of their grid."""

    candidates: int
    rows: int
    width: int


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Args:
        models: the smaller and the larger model: names in ``SIZES``, or "tiny".
        shapes: candidates of a request.
        tokens, inspections: number of tokens of reasoning, and of inspections during it.
        rollouts: numbers of sequences in a group.
        sequences: numbers of sequences that decode together.
        steps, prompt: number of steps timed, and rows of the prompts before them.
        shared: pairs (sequences that share a prefix, rows of the prefix).
        pictures: number of pictures, and their grids of patches.
        kernels: models whose shapes the kernels are measured at.
        compiling: seconds that the compiler of a kernel's peer may take.
        seconds: time spent on one measurement, beyond its least number of calls.
    """

    models: tuple[str, str] = ("3B", "7B")
    shapes: tuple[Shape, ...] = (Shape(50, 256, 16), Shape(50, 81, 9), Shape(20, 1280, 40))
    tokens: int = 64
    inspections: int = 3
    rollouts: tuple[int, ...] = (8, 16)
    sequences: tuple[int, ...] = (1, 8, 32)
    steps: int = 32
    prompt: int = 200
    shared: tuple[tuple[int, int], ...] = ((8, 1024), (32, 8000))
    pictures: tuple[int, tuple[tuple[int, int], ...]] = (50, ((26, 36), (32, 32)))
    kernels: tuple[Model, ...] = (QWEN_3B, QWEN_7B)
    compiling: float = 20.0
    seconds: float = 1.5

    @classmethod
    def quick(cls) -> Scale:
        """Everything at small sizes."""
        return cls(
            models=("3B, 2 layers", "tiny"),
            shapes=(Shape(4, 12, 4), Shape(3, 6, 3)),
            tokens=8,
            inspections=2,
            rollouts=(2,),
            sequences=(1, 2),
            steps=3,
            prompt=12,
            shared=((2, 32),),
            pictures=(2, ((6, 8), (4, 4))),
            kernels=(TINY,),
            compiling=5.0,
            seconds=0.1,
        )


def make(name: str, device: Device) -> Workload:
    """The model of that name in the device's dtype; the caller sets the rows of pictures."""
    if name == "tiny":
        return Workload.tiny(device.kind)
    size = SIZES[name]
    _, tiny = load_checkpoint("tiny")
    with torch.device(device.kind), default_dtype(device.dtype):
        config = RetrvR1Config(backbone_config=backbone(size, tiny.tokenizer))
        model = RetrvR1ForConditionalGeneration(config).eval()
    randomize(model)
    return Workload.of(name, model, tiny, (0, 0), device)


def backbone(size: Size, tokenizer: Any) -> Qwen2_5_VLConfig:
    """The config of the official checkpoint of a size, with a tokenizer's ids."""
    depth, width, inner, heads = size.tower
    text: dict[str, Any] = dict(
        vocab_size=size.vocabulary,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=128_000,
        tie_word_embeddings=size.tied,
        rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[16, 24, 24]),
    )
    vision: dict[str, Any] = dict(
        depth=depth,
        hidden_size=width,
        intermediate_size=inner,
        num_heads=heads,
        patch_size=14,
        temporal_patch_size=2,
        spatial_merge_size=2,
        window_size=112,
        out_hidden_size=size.hidden,
        fullatt_block_indexes=sorted({depth - 1, *range(7, depth, 8)}),
    )
    return qwen_config(tokenizer, text, vision)


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Sets every parameter: norms to 1, biases to 0, all others to small normal values."""
    torch.manual_seed(0)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name.endswith("bias"):
                parameter.zero_()
            elif "Norm" in type(module).__name__:
                parameter.fill_(1)
            else:
                parameter.normal_(std=0.02)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Sets PyTorch's default dtype inside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def weight_bytes(model: Any) -> int:
    """Bytes of weights that a decode step reads: layers and head, no separate embedding table."""
    head = model.get_output_embeddings().weight
    table = model.get_input_embeddings().weight
    parameters = {id(one): one for one in (*model.language_model.parameters(), head)}
    if head is not table:
        parameters.pop(id(table))
    return sum(one.nbytes for one in parameters.values())


def row_bytes(model: Any) -> int:
    """Bytes of a row in the key-value cache."""
    text = model.config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * text.num_key_value_heads * width * model.dtype.itemsize
