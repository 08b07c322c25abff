"""Config and weights of our checkpoints, as SGLang reads them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from transformers import Qwen2_5_VLConfig


class SGLangCheckpointConfig(Qwen2_5_VLConfig):
    """The config of a checkpoint's backbone, with the architecture and model type of ours.

    Attributes:
        own_tower: whether the checkpoint has a tower of its own in place of the backbone's.
    """

    model_type = "retrv_r1"
    own_tower: bool = False

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
        own: dict[str, Any] = {"own_tower": config_dict.get("tower_config") is not None}
        own |= {n: config_dict[n] for n in ("architectures", "dtype") if n in config_dict}
        return super().from_dict({**backbone, **own, "model_type": cls.model_type}, **kwargs)


def served_weights(
    weights: Iterable[tuple[str, Tensor]], *, own_tower: bool
) -> Iterator[tuple[str, Tensor]]:
    """The parameters that a server has, by SGLang's names.

    The compressor's and its text tower's stay here, and so do those of a tower that is not the
    backbone's: our process computes all rows, and the server's tower is one that is never used.
    """
    left = ("icm.", "text_tower.", *(("visual.",) if own_tower else ()))
    for name, value in weights:
        if not (known := sglang_name(name)).startswith(left):
            yield known, value


def sglang_name(name: str) -> str:
    """SGLang's name of a parameter: checkpoints have transformers' older names, models the new."""
    name = name.removeprefix("backbone.")
    name = re.sub(r"^model\.(visual\.)", r"\1", name)
    return name.replace("model.language_model.", "model.", 1)
