"""What a request's items become in SGLang: one multimodal item each, with the hash it came with.

The hash is what SGLang's radix tree and its cache of embeddings go by. The tree keeps 30 bits of
it.
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

from retrv_engine.sglang.wire import Item, places, unpack
from retrv_engine.sglang.worker.models.retrv_r1 import RetrvR1ForConditionalGeneration


class RetrvR1Processor(BaseMultimodalProcessor):
    """Any number of items a request: rows that are ready, and pictures as patches."""

    models: ClassVar = [RetrvR1ForConditionalGeneration]

    async def process_mm_data_async(
        self, image_data: Sequence[Item], *_: Any, request_obj: Any, **__: Any
    ) -> MultimodalProcessorOutput:
        """See :mod:`retrv_engine.sglang.wire` for what ``image_data`` holds."""
        ids = list(request_obj.input_ids)
        positions = places(image_data, len(ids))
        items = [_item(one) for one in image_data]
        token = self.hf_config.image_token_id
        for item in items:
            for first, last in item.offsets:
                ids[first : last + 1] = [token] * (last + 1 - first)
        behind = int(positions.max()) + 1
        return MultimodalProcessorOutput(
            input_ids=ids,
            padded_input_ids=MultimodalProcessorOutput.build_padded_input_ids(ids, items),
            mm_items=items,
            im_start_id=self.hf_config.vision_start_token_id,
            im_end_id=self.hf_config.vision_end_token_id,
            im_token_id=token,
            mrope_positions=positions,
            mrope_position_delta=torch.tensor([[behind - len(ids)]]),
        )


def _item(values: Item) -> MultimodalDataItem:
    ready, first = "rows" in values, values["first"]
    item = MultimodalDataItem(
        modality=Modality.IMAGE,
        feature=unpack(values["rows"] if ready else values["patches"]),
        offsets=[(first, first + values["length"] - 1)],
        format=MultimodalInputFormat.PRECOMPUTED_EMBEDDING
        if ready
        else MultimodalInputFormat.NORMAL,
    )
    if not ready:
        item.image_grid_thw = torch.tensor([values["grid"]])
    item.set_hash(values["key"])
    return item
