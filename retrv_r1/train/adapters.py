"""LoRA on a language model, and the embeddings of our own tokens, which a backbone never saw."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from retrv_kernels.extras import install_command
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.tokens import LABELS, NONE_OF_THESE, RETRV_TOKENS
from retrv_r1.types import RetrvError

ADAPTED = r".*language_model\.layers\..*_proj"
"""Layers that LoRA adapts."""


def adapt(model: nn.Module, rank: int) -> Any:
    """Puts adapters into a model and freezes all else; returns PEFT's model around it.

    Raises:
        RetrvError: PEFT is not installed.
    """
    if not find_spec("peft"):
        raise RetrvError(f"lora needs PEFT: {install_command('rl')}")
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=ADAPTED, lora_dropout=0.0)
    return get_peft_model(model, lora)


def train_new_tokens(
    model: RetrvR1ForConditionalGeneration, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Trains the embeddings of labels and of our other tokens, and of no others.

    Gradients of the others are 0, so an optimizer without weight decay leaves them as they are.
    """
    known = tokenizer.get_vocab()
    own = [known[token] for token in (*RETRV_TOKENS, *LABELS, NONE_OF_THESE) if token in known]
    tables: Any = {model.get_input_embeddings(), model.get_output_embeddings()}
    for weight in {table.weight for table in tables}:
        kept = torch.zeros(len(weight), 1, device=weight.device)
        kept[own] = 1.0
        weight.requires_grad_(True)
        weight.register_hook(lambda gradient, kept=kept: gradient * kept)
