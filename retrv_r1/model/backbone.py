"""Qwen2.5-VL backbones: a config for one, and an untrained Retrv-R1 around a checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from retrv_r1.model.config import RetrvR1Config
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.model.tokens import LABELS, NONE_OF_THESE, RETRV_TOKENS, TokenIds, add_retrv_tokens
from retrv_r1.model.tower import use_packed_attention
from retrv_r1.types import CheckpointError

BACKBONES = ("qwen2_5_vl",)


def qwen_config(
    tokenizer: PreTrainedTokenizerBase, text: dict[str, Any], vision: dict[str, Any]
) -> Qwen2_5_VLConfig:
    """Config of a Qwen2.5-VL model that uses a tokenizer's special tokens.

    Args:
        tokenizer: tokenizer with all special tokens of :mod:`retrv_r1.model.tokens`.
        text: fields of the language model's config. By default its vocabulary is the tokenizer's,
            its width that of the tower's rows, and its embeddings are tied.
        vision: fields of the tower's config.
    """
    ids = TokenIds.of(tokenizer)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": vision["out_hidden_size"],
        "bos_token_id": None,
        "eos_token_id": ids.end,
        "pad_token_id": ids.pad,
        "tie_word_embeddings": True,
        **text,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids.image_pad,
        video_token_id=tokenizer.get_vocab()["<|video_pad|>"],
        vision_start_token_id=ids.vision_start,
        vision_end_token_id=ids.vision_end,
        tie_word_embeddings=text["tie_word_embeddings"],
    )


def from_backbone(
    path: str | Path, *, dtype: torch.dtype | None = None, **config: Any
) -> tuple[RetrvR1ForConditionalGeneration, RetrvR1Processor]:
    """An untrained Retrv-R1 around the weights of a Qwen2.5-VL checkpoint.

    Our special tokens are added to the vocabulary. Official checkpoints have spare embeddings for
    them; the table of others is resized. A new embedding starts near a weighted mean of those of
    the words that it stands for, a label of its number, so labels differ before any training. The
    compressor's tokens have the RMS of the backbone's embeddings.

    Args:
        path: directory or hub id with weights, tokenizer and preprocessing.
        dtype: dtype of the weights; None keeps the checkpoint's.
        config: fields of :class:`RetrvR1Config`, such as ``icm`` and ``prompts``.
    Raises:
        CheckpointError: the checkpoint's kind is not supported.
    """
    backbone_config = AutoConfig.from_pretrained(path)
    if backbone_config.model_type not in BACKBONES:
        raise CheckpointError(
            f"{path} is a {backbone_config.model_type!r} model; backbones: {', '.join(BACKBONES)}"
        )
    backbone = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype or "auto")
    tokenizer = AutoTokenizer.from_pretrained(path)
    known = len(tokenizer)
    meanings = _meanings(tokenizer)
    add_retrv_tokens(tokenizer)
    if len(tokenizer) > backbone.get_input_embeddings().num_embeddings:
        backbone.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for table in {backbone.get_input_embeddings(), backbone.get_output_embeddings()}:
            _start_new(table.weight, known, tokenizer, meanings)
    retrv_config = RetrvR1Config(backbone_config=backbone.config, **config)
    with torch.device("meta"):
        model = RetrvR1ForConditionalGeneration(retrv_config)
    model.backbone = backbone
    model.icm.to_empty(device="cpu").to(backbone.dtype)
    words = backbone.get_input_embeddings().weight.detach()[:known]
    scale = float(words.float().pow(2).mean().sqrt())
    model.icm.reset_parameters(backbone.config.get_text_config().initializer_range, scale)
    use_packed_attention(model.visual)
    processor = RetrvR1Processor(
        retrv_config, tokenizer, Qwen2VLImageProcessorPil.from_pretrained(path)
    )
    return model.eval(), processor


def _start_new(
    table: torch.Tensor,
    known: int,
    tokenizer: PreTrainedTokenizerBase,
    meanings: dict[str, list[int]],
) -> None:
    """Starts the embeddings of new tokens near those of what they stand for."""
    table[known : len(tokenizer)] = table[:known].mean(0)
    spread = table[:known].float().std(0)
    noise = torch.randn(len(meanings), len(spread), generator=torch.Generator().manual_seed(0))
    for (token, ids), own in zip(meanings.items(), noise, strict=True):
        place = tokenizer.convert_tokens_to_ids(token)
        if place >= known and ids:
            # Later words count half, so that "12" is not "21"; and "11" would be "1" without noise.
            weights = torch.tensor([0.5**n for n in range(len(ids))])
            started = weights / weights.sum() @ table[ids].float()
            table[place] = (started + 0.1 * spread * own.to(started)).to(table.dtype)


def _meanings(tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """What our new tokens stand for, as ids of a tokenizer that does not have them yet."""
    said = {label: str(k) for k, label in enumerate(LABELS, 1)}
    said |= {
        token: re.sub(r"[^a-z]+", " ", token.replace("</", "end ")).strip()
        for token in RETRV_TOKENS
    }
    said[NONE_OF_THESE] = "none"
    return {
        token: tokenizer(text, add_special_tokens=False)["input_ids"]
        for token, text in said.items()
    }
