"""The language model of a checkpoint, as an SGLang model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sglang.srt.managers.schedule_batch import MultimodalDataItem
from sglang.srt.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from torch import Tensor

from retrv_engine.sglang.wire_format import sample_of
from retrv_engine.sglang.worker.checkpoint import served_weights, sglang_name
from retrv_engine.sglang.worker.prepare import ARCHITECTURE


class RetrvR1ForConditionalGeneration(Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL whose multimodal items are rows that our process has computed."""

    def get_image_feature(self, items: list[MultimodalDataItem]) -> list[Tensor]:
        """Rows of each item, ``[n, d]``, in the dtype of the embeddings."""
        dtype = self.model.embed_tokens.weight.dtype
        return [item.feature.to(dtype) for item in items]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._samples: dict[str, list[float]] = {}

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        """Takes parameters by a checkpoint's or our model's names (``served_weights``)."""
        return super().load_weights(self._sampled(weights))

    def _sampled(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Keeps a few values of each parameter, before it is split over GPUs or rounded."""
        for name, value in served_weights(weights, own_tower=self.config.own_tower):
            self._samples[name] = sample_of(value)
            yield name, value

    def get_weights_by_name(self, name: str, *_: Any, **__: Any) -> list[list[float]]:
        """Samples of the parameters with these names, one name a line."""
        return [self._samples[sglang_name(one)] for one in name.splitlines()]


assert RetrvR1ForConditionalGeneration.__name__ == ARCHITECTURE
EntryClass = RetrvR1ForConditionalGeneration
