"""bench-small: random weights in the shape of Qwen2.5-0.5B, large enough to be slow.

Nothing about speed depends on what the weights are, and all engines get the same.
"""

from __future__ import annotations

import torch
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from retrv_r1.model.checkpoint import load_checkpoint
from retrv_r1.model.config import RetrvR1Config
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.model.tokens import TokenIds

WORDS = 16384  # rows of the table of embeddings, more than its tokenizer has words
SIDE = 252  # pixels of a picture: 9 × 9 rows
ROWS, WIDTH = 81, 9


def small() -> tuple[RetrvR1ForConditionalGeneration, RetrvR1Processor]:
    """The model, float32, and a processor with the shipped model's tokenizer."""
    _, tiny = load_checkpoint("tiny")
    ids = TokenIds.of(tiny.tokenizer)
    backbone = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=WORDS,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            max_position_embeddings=32768,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=ids.end,
            pad_token_id=ids.pad,
            rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[8, 12, 12]),
        ),
        vision_config=dict(
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
        ),
        image_token_id=ids.image_pad,
        vision_start_token_id=ids.vision_start,
        vision_end_token_id=ids.vision_end,
        tie_word_embeddings=True,
    )
    config = RetrvR1Config(backbone_config=backbone)
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
