"""The engines as entries of trials; each begins every call with empty caches."""

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
from bench.suites.engine.prompts import Paced, World
from retrv_engine import (
    EngineConfig,
    EngineMissing,
    LocalEngine,
    Output,
    PlainEngine,
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
    """What is compared: tokens that were free, ``[m, tokens - 1]``, or logits in fast mode."""
    if len(outputs[0].tokens) == 3:  # <answer>, label, </answer>
        # Some engines tell logits less a constant.
        return torch.stack([output.label_logits.log_softmax(-1) for output in outputs])
    return torch.tensor([output.tokens[1:-4] for output in outputs])


def plain(world: World, requests: Sequence[Request], batch_size: int = 1) -> Callable[[], Tensor]:
    """Straight through transformers, with its own attention and a contiguous cache."""
    engine = PlainEngine(world.model, world.vocabulary, batch_size, generation_type=Paced)
    return lambda: written(engine.generate(requests))


def token(world: World, request: Request) -> Callable[[], Tensor]:
    """The first token behind <think> by transformers, in one pass: what peers do for it."""

    @torch.inference_mode()
    def call() -> Tensor:
        pieces = [*request.prompt, world.vocabulary.think_start]
        embeds, positions, _ = embed_pieces(world.model, pieces, 0)
        mask = torch.ones(1, len(embeds), dtype=torch.long)
        cache = DynamicCache()
        logits = decode(world.model, embeds[None], positions[:, None], mask, cache, 1)
        return logits.argmax(-1)

    return call


def local(
    world: World,
    requests: Sequence[Request],
    weights: Weights = "model",
    *,
    warm: bool = False,
    radix: bool = True,
) -> Call:
    """The embedded engine; ``warm`` leaves what the call before has cached."""
    # On a GPU an engine that is asked for no size takes most of what is free.
    size = None if world.model.device.type == "cpu" else 2**31
    config = EngineConfig(size, weights=weights, radix=radix)
    if config not in world.engines:
        engine = LocalEngine(world.model, world.vocabulary, config, generation_type=Paced)
        world.engines[config] = engine
    return Call(world.engines[config], requests, warm)


@dataclass
class Call:
    """Requests that an engine generates, from empty caches unless it stays warm."""

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
        """Of the call before."""
        return {"rows computed": sum(output.computed_rows for output in self._outputs)}


def sglang(world: World, requests: Sequence[Request], name: str, *, radix: bool = True) -> Entry:
    """A SGLang server on the same weights; where SGLang is absent it says so."""
    try:
        find_python()
    except EngineMissing:
        because = "absent: make sglang-cpu installs it"
        return Entry(name, lambda: [], optional=True, because=because)

    @functools.cache
    def made() -> Call:  # when its turn comes
        return Call(_served(world, radix), requests, warm=True)

    return Entry(
        name,
        lambda: made()(),
        optional=True,
        counts=lambda: made().counts(),
        before=lambda: made().engine.flush(),
    )


@functools.cache
def _served(world: World, radix: bool) -> SGLangEngine:
    config = SGLangConfig(arguments={"disable_radix_cache": not radix})
    engine = SGLangEngine(
        world.model, world.vocabulary, config, checkpoint=_checkpoint(world), generation_type=Paced
    )
    atexit.register(engine.close)
    return engine


def peers(
    world: World,
    requests: Sequence[Request],
    tokens: int,
    *,
    suffix: str = "",
    like: str = "",
    weights: Sequence[str] = ("float32",),
) -> list[Entry]:
    """llama.cpp and vLLM, from the same rows; absent ones say so."""
    entries = []
    for name, title in PEERS.items():
        for stored in weights if name == "llama_cpp" else weights[:1]:
            peer = _peer(name, stored)
            on_cpu = world.model.device.type == "cpu"
            end = "" if stored == "float32" else f", {stored}"
            entries.append(
                Entry(
                    f"{title}{suffix}{end}",
                    functools.partial(_ask, world, peer, requests, tokens),
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


def _ask(world: World, peer: Peer, requests: Sequence[Request], tokens: int) -> Tensor:
    peer.start(_exported(world))
    found = peer.generate([_rows(world, request) for request in requests], tokens)
    return torch.tensor(found)[:, : max(1, tokens - 1)]


@functools.cache
def _checkpoint(world: World) -> Path:
    """A folder with the model; both have the shipped tokenizer."""
    if world.name == "tiny":
        return SHIPPED / "tiny"
    folder = _folder(world) / "checkpoint"
    world.model.save_pretrained(folder)
    for path in (SHIPPED / "tiny").glob("tokenizer*.json"):
        shutil.copy(path, folder)
    return folder


_SAVED: dict[int, tuple[Request, Path]] = {}  # requests are kept, so that ids stay theirs


def _folder(world: World) -> Path:
    folder = ENVIRONMENTS / "models" / world.name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def _exported(world: World) -> Path:
    export(world.model, _folder(world))
    return _folder(world)


def _rows(world: World, request: Request) -> Path:
    """A file of the prompt's rows, and of <think>, which our engines write themselves."""
    if id(request) not in _SAVED:
        pieces = [*request.prompt, world.vocabulary.think_start]
        with torch.inference_mode():
            embeds, _, _ = embed_pieces(world.model, pieces, 0)
        path = _folder(world) / f"prompt-{len(_SAVED)}.npy"
        np.save(path, embeds.cpu().numpy())
        _SAVED[id(request)] = request, path
    return _SAVED[id(request)][1]
