"""Fixtures for all tests: a small model of the real architecture with random weights, and GPUs.

Fixtures of training and of SGLang are plugins: ``training_fixtures``, ``sglang_fixtures``.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_doubles import LEANING
from PIL import Image
from transformers import BertConfig, PreTrainedTokenizerFast, Qwen2_5_VLConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from retrv_r1.model.backbone import qwen_config
from retrv_r1.model.config import RetrvR1Config
from retrv_r1.model.embedder import RetrvEmbedder, RetrvEmbedderConfig
from retrv_r1.model.first_stage import FOLDER, MAX_TEXT
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.model.tokens import train_tokenizer

PATCH, MERGE = 8, 2
# Far above the usual 0.02, so that a wrong row, mask or position changes logits visibly.
SPREAD = 0.15


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fills `torch.empty` with NaN, which shows elements that are never written."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module", autouse=True)
def unfrozen() -> Iterator[None]:
    """Collects the garbage of a module, also what bench.gpu has frozen.

    Each reranker that is left has a gigabyte of address space for its cache. Where those of many
    lie side by side, they are more than the memory, and no process can be forked any more.
    """
    yield
    gc.unfreeze()
    gc.collect()


@dataclass
class Gpu:
    """The machine's first GPU."""

    def move(self, module: torch.nn.Module) -> torch.nn.Module:
        """Moves a module to it, in place."""
        return module.to("cuda")


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def gpu(request) -> Iterator[Any]:
    """An emulated GPU and the machine's own; ``move`` puts modules there."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("there is no CUDA device")
        # By default cuDNN multiplies float32 in TF32, which is less exact than tests compare.
        before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
        yield Gpu()
        torch.backends.cudnn.allow_tf32 = before
        return
    pytest.importorskip("triton", reason="an emulated GPU needs Triton")
    from emulated_cuda import emulate

    with emulate() as device:
        yield device


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    words = ["a red apple", "a blue bird flies high in the sky", "Find the candidate. Query:"]
    return train_tokenizer(words * 10, 446)


@pytest.fixture(scope="session")
def backbone_config(tokenizer) -> Qwen2_5_VLConfig:
    """A config with grouped-query attention, M-RoPE, and windowed and full tower layers."""
    text = dict(
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=SPREAD,
        rope_parameters=dict(rope_type="default", rope_theta=10000.0, mrope_section=[2, 3, 3]),
    )
    vision = dict(
        depth=2,
        hidden_size=32,
        intermediate_size=64,
        num_heads=2,
        patch_size=PATCH,
        temporal_patch_size=1,
        spatial_merge_size=MERGE,
        window_size=2 * MERGE * PATCH,
        out_hidden_size=64,
        fullatt_block_indexes=[1],
        initializer_range=SPREAD,
    )
    return qwen_config(tokenizer, text, vision)


@pytest.fixture(scope="session")
def make_model(backbone_config) -> Callable[..., RetrvR1ForConditionalGeneration]:
    """Builds a random-weight model; arguments are fields of ``RetrvR1Config``."""

    def make(seed: int = 0, **config: Any) -> RetrvR1ForConditionalGeneration:
        torch.manual_seed(seed)
        backbone = copy.deepcopy(backbone_config)
        return RetrvR1ForConditionalGeneration(
            RetrvR1Config(backbone_config=backbone, **config)
        ).eval()

    return make


@pytest.fixture(scope="session")
def model(make_model) -> RetrvR1ForConditionalGeneration:
    """The shared model; tests must not change it."""
    return make_model()


@pytest.fixture(scope="session")
def checkpoint(backbone_config, tokenizer, image_processor, tmp_path_factory) -> tuple[Any, ...]:
    """Model, processor, and their folder: random weights that tend to inspect and to answer.

    The first three values of embeddings steer the next token, as they reach the head almost
    unchanged. Rows made by tests have ``LEANING`` there.
    """
    torch.manual_seed(0)
    backbone = copy.deepcopy(backbone_config)
    backbone.tie_word_embeddings = backbone.text_config.tie_word_embeddings = False
    model = RetrvR1ForConditionalGeneration(RetrvR1Config(backbone_config=backbone)).eval()
    processor = RetrvR1Processor(model.config, tokenizer, image_processor)
    ids = processor.tokens
    with torch.no_grad():
        table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        table[:, :3], head[:, :3] = torch.tensor(LEANING), 0.0
        head[ids.inspect_start, 0], head[ids.think_end, 0] = 5.0, 3.0
        table[[ids.inspect_start, ids.answer_start], 1], head[list(ids.labels[:2]), 1] = 8.0, 3.0
        table[ids.think_end, 2], head[ids.answer_start, 2] = 8.0, 3.0
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor, folder


@pytest.fixture(scope="session")
def make_wide(tokenizer, backbone_config) -> Callable[[int], RetrvR1ForConditionalGeneration]:
    """Builds a model of the shipped one's width and heads, with so many layers."""

    def build(layers: int) -> RetrvR1ForConditionalGeneration:
        torch.manual_seed(0)
        text = dict(
            hidden_size=256,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            initializer_range=0.04,
            rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[8, 12, 12]),
        )
        vision = backbone_config.vision_config.to_dict() | {"out_hidden_size": 256}
        config = RetrvR1Config(
            backbone_config=qwen_config(tokenizer, text, vision),
            icm={"agreement": True},
            prompts={"before_instruction": "<|im_start|>", "after_candidates": "<|im_end|>"},
        )
        return RetrvR1ForConditionalGeneration(config).eval()

    return build


@pytest.fixture(scope="session")
def image_processor() -> Qwen2VLImageProcessorPil:
    """A processor of pictures of any shape, which have 4 to 16 rows each."""
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=1,
        min_pixels=32 * 32,
        max_pixels=64 * 64,
    )


@pytest.fixture(scope="session")
def processor(model, tokenizer, image_processor) -> RetrvR1Processor:
    return RetrvR1Processor(model.config, tokenizer, image_processor)


@pytest.fixture(scope="session")
def two_stages(make_model, tokenizer, tmp_path_factory) -> Path:
    """Folder of an untrained reranker with a first stage, for pictures of 32 × 32 pixels."""
    folder = tmp_path_factory.mktemp("two_stages")
    model = make_model(pad_to_square=True)
    images = Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=MERGE, temporal_patch_size=1, min_pixels=1024, max_pixels=1024
    )
    text = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=MAX_TEXT,
    )
    vision = model.config.backbone_config.vision_config
    model.save_pretrained(folder)
    RetrvR1Processor(model.config, tokenizer, images).save_pretrained(folder)
    RetrvEmbedder(RetrvEmbedderConfig(vision, text, 16)).save_pretrained(folder / FOLDER)
    return folder


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """A function that makes a picture of noise, the same for the same arguments."""

    def make(seed: int, width: int = 48, height: int = 48) -> Image.Image:
        noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
        return Image.fromarray(noise)

    return make
