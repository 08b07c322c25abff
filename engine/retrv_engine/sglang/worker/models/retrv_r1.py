"""The language model and the tower of a checkpoint, as a SGLang model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from sglang.srt.managers import mm_schedule
from sglang.srt.managers.schedule_batch import MultimodalDataItem, MultimodalInputFormat
from sglang.srt.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from torch import Tensor

from retrv_engine.sglang.worker.prepare import ARCHITECTURE


class RetrvR1ForConditionalGeneration(Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL whose items are rows that are ready, or patches that the tower makes rows of."""

    def get_image_feature(self, items: list[MultimodalDataItem]) -> list[Tensor]:
        """Rows of each item, ``[n, d]``; all patches go through the tower in one batch."""
        patches = [item for item in items if item.format == MultimodalInputFormat.NORMAL]
        encoded = iter(self._encode(patches) if patches else ())
        dtype = self.model.embed_tokens.weight.dtype
        return [
            next(encoded) if item.format == MultimodalInputFormat.NORMAL else item.feature.to(dtype)
            for item in items
        ]

    def _encode(self, items: list[MultimodalDataItem]) -> tuple[Tensor, ...]:
        pixels = torch.cat([item.feature for item in items]).to(self.visual.dtype)
        grids = torch.cat([item.image_grid_thw for item in items])
        merged = grids.prod(-1) // self.visual.spatial_merge_size**2
        return self.visual(pixels, grid_thw=grids).split(merged.tolist())

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        """Takes a checkpoint's names and a model's; the compressor's weights are not served.

        Rows that the tower made with the old weights are forgotten: SGLang itself keeps them.
        """
        if mm_schedule.embedding_cache is not None:
            mm_schedule.embedding_cache.clear()
        served = ((name, value) for name, value in weights if not name.startswith("icm."))
        return super().load_weights((served_name(name), value) for name, value in served)


def served_name(name: str) -> str:
    """What SGLang calls a parameter: files have transformers' older names, models the newer."""
    name = name.removeprefix("backbone.")
    name = re.sub(r"^model\.(visual\.)", r"\1", name)
    return name.replace("model.language_model.", "model.", 1)


assert RetrvR1ForConditionalGeneration.__name__ == ARCHITECTURE
EntryClass = RetrvR1ForConditionalGeneration
