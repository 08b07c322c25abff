"""What a SGLang process has to know before it reads one of our checkpoints.

SGLang finds the model and the processor by the packages that the environment names; the kind of
checkpoint and the sampler have to be registered in each of its processes.
"""

from __future__ import annotations

import os
from typing import Any

ARCHITECTURE = "RetrvR1ForConditionalGeneration"
SAMPLER = "pytorch"
"""The name ours goes by: on a CPU SGLang takes no other."""
ENVIRONMENT = {
    "SGLANG_EXTERNAL_MODEL_PACKAGE": "retrv_engine.sglang.worker.models",
    "SGLANG_EXTERNAL_MM_MODEL_ARCH": ARCHITECTURE,
    "SGLANG_EXTERNAL_MM_PROCESSOR_PACKAGE": "retrv_engine.sglang.worker.processors",
}


def prepare() -> None:
    """Makes this process one that can serve our checkpoints; before anything of SGLang's."""
    from retrv_engine.sglang.worker import cpu_shim

    os.environ.update(ENVIRONMENT)
    cpu_shim.install()
    _register_checkpoint()
    _register_sampler()


def _register_checkpoint() -> None:
    from sglang.srt.utils.hf_transformers import processor
    from transformers import AutoConfig, AutoTokenizer

    from retrv_engine.sglang.worker.checkpoint import ServedConfig

    AutoConfig.register(ServedConfig.model_type, ServedConfig)
    # Pictures are prepared by who asks: the tokenizer is all that is left of a processor.
    processor._CUSTOMIZED_MM_PROCESSOR[ServedConfig.model_type] = AutoTokenizer


def _register_sampler() -> None:
    from sglang.srt.layers.sampler import register_sampler_backend

    def make() -> Any:
        from retrv_engine.sglang.worker.sampler import Sampler, use_seeds

        use_seeds()
        return Sampler()

    register_sampler_backend(SAMPLER, make)
