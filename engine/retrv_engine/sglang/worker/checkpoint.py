"""The config of our checkpoints, as SGLang reads it."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2_5_VLConfig


class SGLangCheckpointConfig(Qwen2_5_VLConfig):
    """The config of a checkpoint's backbone, with the architecture and model type of ours."""

    model_type = "retrv_r1"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Reads the config of a whole checkpoint.

        Raises:
            ValueError: SGLang cannot serve the backbone.
        """
        backbone = dict(config_dict.get("backbone_config") or {})
        if (kind := backbone.get("model_type")) != "qwen2_5_vl":
            raise ValueError(
                f"this backbone is {kind!r}, and only Qwen2.5-VL ones are served with SGLang: "
                'use engine="local"'
            )
        own = {
            name: config_dict[name] for name in ("architectures", "dtype") if name in config_dict
        }
        return super().from_dict({**backbone, **own, "model_type": cls.model_type}, **kwargs)
