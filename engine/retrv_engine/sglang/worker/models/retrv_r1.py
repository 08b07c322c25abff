"""The language model of a checkpoint, as an SGLang model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from sglang.srt.managers.schedule_batch import MultimodalDataItem
from sglang.srt.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from torch import Tensor

from retrv_engine.sglang.worker.prepare import ARCHITECTURE


class RetrvR1ForConditionalGeneration(Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL whose multimodal items are rows that our process has computed."""

    def get_image_feature(self, items: list[MultimodalDataItem]) -> list[Tensor]:
        """Rows of each item, ``[n, d]``, in the dtype of the embeddings."""
        dtype = self.model.embed_tokens.weight.dtype
        return [item.feature.to(dtype) for item in items]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        """Takes parameters by a checkpoint's or our model's names; leaves out the compressor's."""
        return super().load_weights(
            (sglang_name(name), value) for name, value in weights if not name.startswith("icm.")
        )


def sglang_name(name: str) -> str:
    """SGLang's name of a parameter: checkpoints have transformers' older names, models the new."""
    name = name.removeprefix("backbone.")
    name = re.sub(r"^model\.(visual\.)", r"\1", name)
    return name.replace("model.language_model.", "model.", 1)


assert RetrvR1ForConditionalGeneration.__name__ == ARCHITECTURE
EntryClass = RetrvR1ForConditionalGeneration
