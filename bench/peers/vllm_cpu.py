"""vLLM on a CPU, in this process; candidate vectors are passed as prompt embeddings."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch

from bench.peers.protocol import Generate, serve


def start(folder: str, weights: str, threads: int) -> Generate:
    """Loads a checkpoint with weights in a dtype; returns its generate function."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": str(threads),
    }
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    engine = LLM(
        folder,
        dtype=weights,
        skip_tokenizer_init=True,
        enforce_eager=True,
        block_size=32,
        kv_cache_memory_bytes=2**30,
        max_model_len=16384,
        enable_prompt_embeds=True,
        enable_prefix_caching=True,
    )

    def generate(prompts: Sequence[np.ndarray], count: int) -> list[list[int]]:
        engine.reset_prefix_cache()
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        rows = [{"prompt_embeds": torch.from_numpy(prompt)} for prompt in prompts]
        outputs = engine.generate(rows, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return generate


if __name__ == "__main__":
    serve(start)
