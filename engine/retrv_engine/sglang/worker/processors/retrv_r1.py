"""SGLang's multimodal processor for our requests: each item becomes a multimodal item.

An item keeps the key that it was sent with as its hash, by which SGLang's radix tree and cache of
embeddings find it. The tree keeps 30 bits of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from sglang.srt.managers.schedule_batch import (
    Modality,
    MultimodalDataItem,
    MultimodalInputFormat,
    MultimodalProcessorOutput,
)
from sglang.srt.multimodal.processors.base_processor import BaseMultimodalProcessor

from retrv_engine.sglang.wire_format import WireItem, mrope_positions, tensor_from_json
from retrv_engine.sglang.worker.models.retrv_r1 import RetrvR1ForConditionalGeneration


class RetrvR1Processor(BaseMultimodalProcessor):
    """Takes requests with any number of items."""

    models: ClassVar = [RetrvR1ForConditionalGeneration]

    async def process_mm_data_async(
        self, image_data: Sequence[WireItem], *_: Any, request_obj: Any, **__: Any
    ) -> MultimodalProcessorOutput:
        """See :class:`retrv_engine.sglang.wire_format.WirePrompt` for ``image_data``."""
        ids = list(request_obj.input_ids)
        positions = mrope_positions(image_data, len(ids))
        items = [_multimodal_item(one) for one in image_data]
        token = self.hf_config.image_token_id
        for item in items:
            for first, last in item.offsets:
                ids[first : last + 1] = [token] * (last + 1 - first)
        next_position = int(positions.max()) + 1
        return MultimodalProcessorOutput(
            input_ids=ids,
            padded_input_ids=MultimodalProcessorOutput.build_padded_input_ids(ids, items),
            mm_items=items,
            im_start_id=self.hf_config.vision_start_token_id,
            im_end_id=self.hf_config.vision_end_token_id,
            im_token_id=token,
            mrope_positions=positions,
            mrope_position_delta=torch.tensor([[next_position - len(ids)]]),
        )


def _multimodal_item(values: WireItem) -> MultimodalDataItem:
    item = MultimodalDataItem(
        modality=Modality.IMAGE,
        feature=tensor_from_json(values["rows"]),
        offsets=[(values["first"], values["first"] + values["length"] - 1)],
        format=MultimodalInputFormat.PRECOMPUTED_EMBEDDING,
    )
    item.set_hash(values["key"])
    return item
