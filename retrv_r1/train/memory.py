"""Gives a compressor its memory: the things that the training pictures show, and their names.

A prototype is what content tokens of one thing have in common, pictures by many hands and its name;
its code spells the name. So a content token of a picture that no text describes carries the name of
what it resembles, and a language model learns to read it: after 100 steps on names alone three
times as many pictures were named as after 740 steps without codes (docs/LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from retrv_r1.model.icm_layers import Memory
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.train.named import NamedPictures
from retrv_r1.types import Item

RANK, TEMPERATURE = 64, 0.035
"""Directions in which prototypes differ, and divisor of cosines (docs/LOG.md)."""
_HANDS = 24
"""Most pictures of a thing whose mean is taken."""
_AT_ONCE = 2048
_PIECES = 3
"""First tokens of a name that its code spells."""
_AGREEMENT = 0.25
"""Weight of codes in agreement, beside that of the tokens."""


@torch.no_grad()
def initialize_memory(
    model: RetrvR1ForConditionalGeneration,
    processor: RetrvR1Processor,
    named: NamedPictures,
    rows_of: Callable[[Sequence[int]], Tensor],
    size: int,
) -> None:
    """Adds a memory to a compressor that has none; content tokens must not change afterwards.

    Args:
        named: the things; those that training draws most often get a prototype.
        rows_of: tower rows of pictures of the bank, ``[n, rows, d]``.
        size: number of prototypes; the number of things where there are fewer.
    """
    icm, width = model.icm, model.config.hidden_size
    chosen = named.likeliest(size)
    shown, pictures = _means(model, named, chosen, rows_of)
    names = [named.names[thing] for thing in chosen]
    points = normalize(shown + _texts(model, processor, names), dim=-1)
    rank = min(RANK, *points.shape)
    basis = torch.linalg.svd(points, full_matrices=False).Vh[:rank].T
    config = replace(
        icm.config,
        memory_size=len(points),
        memory_width=width // 2,
        memory_rank=rank,
        memory_temperature=TEMPERATURE,
    )
    memory = Memory(width, config).to(points)
    assert memory.basis is not None
    memory.basis.copy_(basis)
    memory.prototypes.copy_(points @ basis)
    memory.codes.copy_(_codes(model, processor, names, memory.codes.shape[1]))
    # Beside the directions in which content tokens vary most, and before those that are free for
    # notes of the heads that copy; the first component is free for agreement.
    varied = pictures[:, 1:]
    directions = torch.linalg.eigh(varied.T @ varied).eigenvectors.flip(1)
    directions = pad(directions, (0, 0, 1, 0))[:, width // 4 :][:, : width // 2]
    scale = float(icm.content_norm.weight.abs().mean())
    memory.out.weight.copy_(scale * (width / directions.shape[1]) ** 0.5 * directions)
    icm.memory, icm.config = memory, config
    model.config.icm = asdict(config)
    if icm.agree is not None:
        icm.agree = _with_codes(icm.agree, memory.codes.shape[1])


def freeze_resemblance(model: RetrvR1ForConditionalGeneration) -> None:
    """Freezes what decides which of a memory's things a content token resembles.

    Codes go on learning. A memory without named things, which learns its prototypes, stays free;
    and so do token embeddings, which the compressor reads where texts have no tower.
    """
    icm, memory = model.icm, model.icm.memory
    if memory is None or memory.basis is None:
        return
    for part in (icm.row_norm, icm.pool, icm.content_norm, model.text_tower):
        if part is not None:
            part.requires_grad_(False)
    memory.basis.requires_grad_(False)
    memory.prototypes.requires_grad_(False)


def _means(
    model: RetrvR1ForConditionalGeneration,
    named: NamedPictures,
    chosen: Sequence[int],
    rows_of: Callable[[Sequence[int]], Tensor],
) -> tuple[Tensor, Tensor]:
    """Unit vectors of things' mean content tokens, and of enough tokens to see how they vary."""
    pictures: list[int] = []
    owner: list[int] = []
    for place, thing in enumerate(chosen):
        own = np.random.default_rng(thing).permutation(named.shown(thing))[:_HANDS].tolist()
        pictures += own
        owner += [place] * len(own)
    means = torch.zeros(len(chosen), model.config.hidden_size, device=model.device)
    owners, tokens = torch.tensor(owner, device=model.device), means[:0]
    for start in track(range(0, len(pictures), _AT_ONCE), "what the named pictures look like"):
        rows = rows_of(pictures[start : start + _AT_ONCE]).to(model.device)
        offsets = torch.arange(len(rows) + 1) * rows.shape[1]
        tokens = normalize(model.icm.pooled(rows.flatten(0, 1), offsets).float(), dim=-1)
        means.index_add_(0, owners[start : start + _AT_ONCE], tokens)
    means = normalize(means, dim=-1)
    return means, means if len(means) > means.shape[1] else tokens


def _texts(
    model: RetrvR1ForConditionalGeneration, processor: RetrvR1Processor, names: Sequence[str]
) -> Tensor:
    """Unit vectors of the names' content tokens, ``[n, d]``."""
    found = []
    for start in range(0, len(names), _AT_ONCE):
        encoded = [processor.encode(Item(text=name)) for name in names[start : start + _AT_ONCE]]
        items = processor.pack(encoded).to(model.device)
        found.append(model.icm.pooled(model.features(items), items.cu_seqlens).float())
    return normalize(torch.cat(found), dim=-1)


def _codes(
    model: RetrvR1ForConditionalGeneration,
    processor: RetrvR1Processor,
    names: Sequence[str],
    width: int,
) -> Tensor:
    """Codes ``[n, width]``: the first tokens of a name, each in the directions that tell most."""
    table: Any = model.get_input_embeddings().weight
    table = table.float() - table.float().mean(0)
    room = width // _PIECES
    shown = torch.linalg.svd(table, full_matrices=False).Vh[:room]
    codes = torch.zeros(len(names), width, device=table.device)
    for code, name in zip(codes, names, strict=True):
        ids = processor.tokenizer.encode(f" {name}", add_special_tokens=False)[:_PIECES]
        ids += [processor.tokens.end] * (_PIECES - len(ids))
        code[: _PIECES * room] = normalize(table[ids] @ shown.T, dim=-1).flatten()
    return codes


def _with_codes(agree: nn.Linear, width: int) -> nn.Linear:
    """Agreement that compares codes ``[width]`` as well."""
    own = agree.weight
    wider = nn.Linear(own.shape[1] + width, own.shape[0], bias=False).to(own)
    # The same for equal codes as for equal tokens, times the weight.
    more = _AGREEMENT * own.sum(1, keepdim=True).expand(-1, width) / width
    wider.weight.copy_(torch.cat([own, more], 1))
    return wider
