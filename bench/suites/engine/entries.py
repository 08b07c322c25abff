"""The engines as entries of trials; every call starts with empty caches."""

from __future__ import annotations

import atexit
import functools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from bench.harness import Entry
from bench.peers.client import ENVIRONMENTS, Peer, export
from bench.suites.engine.workload import PacedGeneration, Workload
from retrv_engine import (
    EngineConfig,
    EngineMissing,
    LocalEngine,
    Output,
    Request,
    SGLangConfig,
    SGLangEngine,
)
from retrv_engine.config import Weights
from retrv_engine.plain import decode, embed_pieces
from retrv_engine.sglang.process import find_python
from retrv_r1.model.checkpoint import SHIPPED

PEERS = {"llama_cpp": "llama.cpp", "vllm_cpu": "vLLM"}


def written(outputs: Sequence[Output]) -> Tensor:
    """The compared result: free tokens ``[m, tokens - 1]``, or label logits in fast mode."""
    if len(outputs[0].tokens) == 3:  # <answer>, label, </answer>
        # Some engines return logits up to a constant.
        return torch.stack([output.label_logits.log_softmax(-1) for output in outputs])
    return torch.tensor([output.tokens[1:-4] for output in outputs])


def plain(work: Workload, requests: Sequence[Request], batch_size: int = 1) -> Callable[[], Tensor]:
    """The plain engine: transformers with its own attention and a contiguous cache."""
    engine = work.plain(batch_size)
    return lambda: written(engine.generate(requests))


def token(work: Workload, request: Request) -> Callable[[], Tensor]:
    """The first token after <think> from one pass of transformers, which is what peers compute."""

    @torch.inference_mode()
    def call() -> Tensor:
        pieces = [*request.prompt, work.tokens.think_start]
        embeds, positions, _ = embed_pieces(work.model, pieces, 0)
        mask = torch.ones(1, len(embeds), dtype=torch.long)
        cache = DynamicCache()
        logits = decode(work.model, embeds[None], positions[:, None], mask, cache, 1)
        return logits.argmax(-1)

    return call


def local(
    work: Workload,
    requests: Sequence[Request],
    weights: Weights = "model",
    *,
    warm: bool = False,
    radix: bool = True,
) -> Call:
    """The embedded engine; ``warm`` keeps what the previous call has cached."""
    # By default an engine takes most of a GPU's free memory.
    size = None if work.model.device.type == "cpu" else 2**31
    config = EngineConfig(size, weights=weights, radix=radix)
    if config not in work.engines:
        work.engines[config] = work.local(config)
    return Call(work.engines[config], requests, warm)


@dataclass
class Call:
    """Generates requests with an engine, from empty caches unless ``warm``."""

    engine: LocalEngine | SGLangEngine
    requests: Sequence[Request]
    warm: bool = False
    _outputs: Sequence[Output] = ()

    def __call__(self) -> Tensor:
        if not self.warm:
            self.engine.flush()
        self._outputs = self.engine.generate(self.requests)
        return written(self._outputs)

    def counts(self) -> dict[str, int]:
        """Counts of the previous call."""
        return {"rows computed": sum(output.computed_rows for output in self._outputs)}


def sglang(work: Workload, requests: Sequence[Request], name: str, *, radix: bool = True) -> Entry:
    """An SGLang server on the same weights; noted as absent if SGLang is not installed."""
    try:
        find_python()
    except EngineMissing:
        because = "absent: make sglang-cpu installs it"
        return Entry(name, lambda: [], optional=True, because=because)

    @functools.cache
    def made() -> Call:  # starts the server when first called
        return Call(_sglang_engine(work, radix), requests, warm=True)

    return Entry(
        name,
        lambda: made()(),
        optional=True,
        counts=lambda: made().counts(),
        before=lambda: made().engine.flush(),
    )


@functools.cache
def _sglang_engine(work: Workload, radix: bool) -> SGLangEngine:
    config = SGLangConfig(arguments={"disable_radix_cache": not radix})
    engine = SGLangEngine(
        work.model,
        work.tokens,
        config,
        checkpoint=_checkpoint(work),
        generation_type=PacedGeneration,
    )
    atexit.register(engine.close)
    return engine


def peers(
    work: Workload,
    requests: Sequence[Request],
    tokens: int,
    *,
    suffix: str = "",
    like: str = "",
    weights: Sequence[str] = ("float32",),
) -> list[Entry]:
    """llama.cpp and vLLM on the same rows; noted as absent if not installed."""
    entries = []
    for name, title in PEERS.items():
        for stored in weights if name == "llama_cpp" else weights[:1]:
            peer = _peer(name, stored)
            on_cpu = work.model.device.type == "cpu"
            end = "" if stored == "float32" else f", {stored}"
            entries.append(
                Entry(
                    f"{title}{suffix}{end}",
                    functools.partial(_ask, work, peer, requests, tokens),
                    optional=True,
                    because=peer.because if on_cpu else "measured on CPUs only",
                    like=like,
                    compared=stored == "float32",
                )
            )
    return entries


@functools.cache
def _peer(name: str, weights: str) -> Peer:
    peer = Peer(name, weights)
    atexit.register(peer.close)
    return peer


def _ask(work: Workload, peer: Peer, requests: Sequence[Request], tokens: int) -> Tensor:
    peer.start(_exported(work))
    found = peer.generate([_rows(work, request) for request in requests], tokens)
    return torch.tensor(found)[:, : max(1, tokens - 1)]


@functools.cache
def _checkpoint(work: Workload) -> Path:
    """A folder with the model and the shipped tokenizer."""
    if work.name == "tiny":
        return SHIPPED / "tiny"
    folder = _folder(work) / "checkpoint"
    work.model.save_pretrained(folder)
    for path in (SHIPPED / "tiny").glob("tokenizer*.json"):
        shutil.copy(path, folder)
    return folder


_SAVED: dict[int, tuple[Request, Path]] = {}  # keeps requests alive, whose ids are the keys


def _folder(work: Workload) -> Path:
    folder = ENVIRONMENTS / "models" / work.name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def _exported(work: Workload) -> Path:
    export(work.model, _folder(work))
    return _folder(work)


def _rows(work: Workload, request: Request) -> Path:
    """A file with rows of the prompt and of <think>, which our engines append themselves."""
    if id(request) not in _SAVED:
        pieces = [*request.prompt, work.tokens.think_start]
        with torch.inference_mode():
            embeds, _, _ = embed_pieces(work.model, pieces, 0)
        path = _folder(work) / f"prompt-{len(_SAVED)}.npy"
        np.save(path, embeds.cpu().numpy())
        _SAVED[id(request)] = request, path
    return _SAVED[id(request)][1]
