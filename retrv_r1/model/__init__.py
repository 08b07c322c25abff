"""The model: configuration, compression, embedding construction, preprocessing."""

from retrv_r1.model.backbone import from_backbone
from retrv_r1.model.config import ICMConfig, RetrvR1Config
from retrv_r1.model.modeling import PackedItems, RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor

__all__ = [
    "ICMConfig",
    "PackedItems",
    "RetrvR1Config",
    "RetrvR1ForConditionalGeneration",
    "RetrvR1Processor",
    "from_backbone",
]
