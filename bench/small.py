"""bench-small: random weights in the shape of Qwen2.5-0.5B, large enough to be slow.

Speed does not depend on the values of weights, and all engines get the same ones.
"""

from __future__ import annotations

import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from retrv_r1.model.backbone import qwen_config
from retrv_r1.model.checkpoint import load_checkpoint
from retrv_r1.model.config import RetrvR1Config
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor

WORDS = 16384  # rows of the embedding table, more than the tokenizer has tokens
SIDE = 252  # pixels of a picture's side: 9 × 9 rows
ROWS, WIDTH = 81, 9


def small() -> tuple[RetrvR1ForConditionalGeneration, RetrvR1Processor]:
    """The model in float32, and a processor with the shipped model's tokenizer."""
    _, tiny = load_checkpoint("tiny")
    text = dict(
        vocab_size=WORDS,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[8, 12, 12]),
    )
    vision = dict(
        depth=8,
        hidden_size=512,
        intermediate_size=1408,
        num_heads=8,
        patch_size=14,
        temporal_patch_size=1,
        spatial_merge_size=2,
        window_size=112,
        out_hidden_size=896,
        fullatt_block_indexes=[3, 7],
    )
    config = RetrvR1Config(backbone_config=qwen_config(tiny.tokenizer, text, vision))
    torch.manual_seed(0)
    model = RetrvR1ForConditionalGeneration(config).eval()
    pictures = Qwen2VLImageProcessorPil(
        patch_size=14,
        merge_size=2,
        temporal_patch_size=1,
        min_pixels=SIDE * SIDE,
        max_pixels=SIDE * SIDE,
    )
    return model, RetrvR1Processor(config, tiny.tokenizer, pictures)
