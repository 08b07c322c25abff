"""llama.cpp through its C interface; candidate vectors are passed as rows of embeddings."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from pathlib import Path

import gguf  # type: ignore[import-not-found]  # in a separate environment
import llama_cpp as llama  # type: ignore[import-not-found]
import numpy as np
from safetensors.numpy import load_file

from bench.peers.protocol import Generate, serve

ROWS = 512  # rows of a batch
CONTEXT, SEQUENCES = 16384, 32
TYPES = {
    "float32": gguf.GGMLQuantizationType.F32,
    "float16": gguf.GGMLQuantizationType.F16,
    "int8": gguf.GGMLQuantizationType.Q8_0,
}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def convert(folder: Path, weights: str) -> Path:
    """Writes a Qwen2 checkpoint as GGUF, without a tokenizer."""
    path = folder / f"{weights}.gguf"
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    for name, tensor in load_file(folder / "model.safetensors").items():
        stem, kind = name.rsplit(".", 1)
        if stem.startswith("model.layers."):
            number, part = stem.removeprefix("model.layers.").split(".", 1)
            stem = f"blk.{number}.{NAMES[part]}"
        else:
            stem = NAMES[stem]
        stored = TYPES[weights] if tensor.ndim == 2 else TYPES["float32"]
        writer.add_tensor(f"{stem}.{kind}", gguf.quants.quantize(tensor, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Engine:
    """A model, and a context for several sequences."""

    def __init__(self, path: Path, threads: int) -> None:
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(
            str(path).encode(), llama.llama_model_default_params()
        )
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = CONTEXT, ROWS, ROWS
        params.n_seq_max, params.kv_unified = SEQUENCES, True
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = 0  # float32
        params.flash_attn_type = 0  # off
        self.context = llama.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp cannot make a context: see its log")
        self.memory = llama.llama_get_memory(self.context)
        self.width = llama.llama_model_n_embd(self.model)
        words = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.words = words
        self.rows = llama.llama_batch_init(ROWS, self.width, 1)
        self.tokens = llama.llama_batch_init(SEQUENCES, 0, 1)

    def generate(self, prompts: Sequence[np.ndarray], count: int) -> list[list[int]]:
        """See :data:`bench.peers.protocol.Generate`."""
        llama.llama_memory_clear(self.memory, True)
        last: list[int] = []
        for i, prompt in enumerate(prompts):
            if i and prompt is prompts[0]:
                llama.llama_memory_seq_cp(self.memory, 0, i, -1, -1)
                last.append(last[0])
            else:
                last.append(self._prefill(prompt, i))
        written = [[token] for token in last]
        for step in range(count - 1):
            for i, prompt in enumerate(prompts):
                self.tokens.token[i] = written[i][-1]
                self._place(self.tokens, i, len(prompt) + step, i, True)
            self.tokens.n_tokens = len(prompts)
            self._decode(self.tokens)
            for i in range(len(prompts)):
                written[i].append(self._best(i))
        return written

    def _prefill(self, prompt: np.ndarray, sequence: int) -> int:
        batch = self.rows
        for first in range(0, len(prompt), ROWS):
            rows = np.ascontiguousarray(prompt[first : first + ROWS], np.float32)
            ctypes.memmove(batch.embd, rows.ctypes.data, rows.nbytes)
            for i in range(len(rows)):
                last = first + i == len(prompt) - 1
                self._place(batch, i, first + i, sequence, last)
            batch.n_tokens = len(rows)
            self._decode(batch)
        return self._best(batch.n_tokens - 1)

    @staticmethod
    def _place(batch: llama.llama_batch, i: int, at: int, sequence: int, logits: bool) -> None:
        batch.pos[i], batch.n_seq_id[i], batch.logits[i] = at, 1, logits
        batch.seq_id[i][0] = sequence

    def _decode(self, batch: llama.llama_batch) -> None:
        if status := llama.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode failed with status {status}")

    def _best(self, i: int) -> int:
        logits = llama.llama_get_logits_ith(self.context, i)
        return int(np.ctypeslib.as_array(logits, (self.words,)).argmax())


def start(folder: str, weights: str, threads: int) -> Generate:
    """Loads a checkpoint; returns its generate function."""
    return Engine(convert(Path(folder), weights), threads).generate


if __name__ == "__main__":
    serve(start)
