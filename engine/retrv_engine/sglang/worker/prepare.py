"""Prepares a process of SGLang for our checkpoints.

SGLang finds the model and the processor by environment variables, which its workers inherit. The
config of our checkpoints and the sampler have to be registered in each process.
"""

from __future__ import annotations

import os
from typing import Any

ARCHITECTURE = "RetrvR1ForConditionalGeneration"
SAMPLER = "pytorch"
"""Name of our sampler: on a CPU SGLang accepts no other."""
ENVIRONMENT = {
    "SGLANG_EXTERNAL_MODEL_PACKAGE": "retrv_engine.sglang.worker.models",
    "SGLANG_EXTERNAL_MM_MODEL_ARCH": ARCHITECTURE,
    "SGLANG_EXTERNAL_MM_PROCESSOR_PACKAGE": "retrv_engine.sglang.worker.processors",
}


def prepare() -> None:
    """Prepares this process; call it before anything of SGLang is imported."""
    from retrv_engine.sglang.worker import cpu_shim

    os.environ.update(ENVIRONMENT)
    cpu_shim.install()
    _register_checkpoint()
    _register_sampler()


def _register_checkpoint() -> None:
    from sglang.srt.utils.hf_transformers import processor
    from transformers import AutoConfig, AutoTokenizer

    from retrv_engine.sglang.worker.checkpoint import SGLangCheckpointConfig

    AutoConfig.register(SGLangCheckpointConfig.model_type, SGLangCheckpointConfig)
    # Our process encodes pictures, so the server needs nothing of a processor but its tokenizer.
    processor._CUSTOMIZED_MM_PROCESSOR[SGLangCheckpointConfig.model_type] = AutoTokenizer


def _register_sampler() -> None:
    from sglang.srt.layers.sampler import register_sampler_backend

    def make() -> Any:
        from retrv_engine.sglang.worker.sampler import Sampler, pass_seeds

        pass_seeds()
        return Sampler()

    register_sampler_backend(SAMPLER, make)
