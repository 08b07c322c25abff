"""Our checkpoints as SGLang reads them."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2_5_VLConfig


class ServedConfig(Qwen2_5_VLConfig):
    """The config of a checkpoint's backbone, under our name: the architecture stays ours."""

    model_type = "retrv_r1"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Reads the outer config.

        Raises:
            ValueError: the backbone is of a kind that is not served.
        """
        backbone = dict(config_dict.get("backbone_config") or {})
        if (kind := backbone.get("model_type")) != "qwen2_5_vl":
            raise ValueError(f"SGLang serves Qwen2.5-VL backbones here, this one is {kind!r}")
        own = {
            name: config_dict[name] for name in ("architectures", "dtype") if name in config_dict
        }
        return super().from_dict({**backbone, **own, "model_type": cls.model_type}, **kwargs)
