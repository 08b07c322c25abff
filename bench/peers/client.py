"""Client of a peer's process.

A peer answers lines of JSON with lines of JSON (:mod:`bench.peers.protocol`). Weights and prompts
are passed in files, outside of the timed calls.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Qwen2Config

from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / "build" / "peers"
SHARED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
)


def export(model: RetrvR1ForConditionalGeneration, folder: Path) -> None:
    """Writes the language model as a Qwen2 checkpoint, which every engine reads.

    Peers are given text positions only, for which M-RoPE equals plain RoPE.
    """
    text = model.config.backbone_config.text_config
    if not model.config.backbone_config.tie_word_embeddings:
        raise ValueError("cannot export an untied head: only models with tied embeddings")
    prefix = "backbone.model.language_model."
    weights = {
        f"model.{name.removeprefix(prefix)}": tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(prefix)
    }
    config = Qwen2Config(
        **{name: getattr(text, name) for name in SHARED},
        rope_parameters={"rope_type": "default", "rope_theta": text.rope_parameters["rope_theta"]},
        tie_word_embeddings=True,
        architectures=["Qwen2ForCausalLM"],
        dtype="float32",
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


class Peer:
    """An engine that generates greedily from embeddings.

    Args:
        name: name of its environment and of its module in this package.
        weights: dtype in which it stores weights; it is given float32.
    """

    def __init__(self, name: str, weights: str = "float32") -> None:
        self.name, self.weights = name, weights
        self.python = ENVIRONMENTS / name / "bin" / "python"
        self._process: subprocess.Popen[str] | None = None

    @property
    def because(self) -> str:
        """Reason why it cannot run here, "" if it can."""
        return "" if self.python.exists() else "absent: make bench-peers builds it"

    def start(self, model: Path) -> None:
        """Starts it on the weights in a folder, if it is not running.

        Raises:
            RuntimeError: it ended while starting; the message names its log.
        """
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None:
            threads = torch.get_num_threads()
            log = (ENVIRONMENTS / f"{self.name}-{self.weights}.log").open("w")
            self._process = subprocess.Popen(
                [self.python, "-m", f"bench.peers.{self.name}", model, self.weights, str(threads)],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent / 'vllm_site'}"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            self._ask()  # waits until it is ready

    def generate(self, prompts: Sequence[Path], tokens: int) -> list[list[int]]:
        """Greedy tokens for each prompt, a ``.npy`` of rows ``[n, d]``, from empty caches."""
        return self._ask(prompts=[str(path) for path in prompts], tokens=tokens)["tokens"]

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self, **values: Any) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        if values:
            process.stdin.write(json.dumps(values) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            self.close()
            raise RuntimeError(f"{self.name} ended: see build/peers/{self.name}-{self.weights}.log")
        return json.loads(line)
