"""A model to train that begins as a Qwen2.5-VL checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from retrv_r1.model.backbone import from_backbone
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.train.chains import CHAIN_INSPECTIONS


def around_backbone(
    path: Path, side: int
) -> tuple[RetrvR1ForConditionalGeneration, RetrvR1Processor]:
    """An untrained Retrv-R1 around a backbone, which reads pictures as squares of ``side`` pixels.

    Weights are float32, as all that is trained.
    """
    model, processor = from_backbone(
        path, dtype=torch.float32, pad_to_square=True, max_inspections=CHAIN_INSPECTIONS
    )
    images = Qwen2VLImageProcessorPil.from_pretrained(path, min_pixels=side**2, max_pixels=side**2)
    return model, RetrvR1Processor(model.config, processor.tokenizer, images)
