"""Initial weights of ``read``: compressor and token embeddings made from the first stage.

The first stage has learned which words mean which pictures. Its vectors are close to a linear map
``M`` of a picture's mean tower row. The new model therefore begins with content tokens that have
the same inner products, ``(MᵀM)^½ · mean row``, and with token embeddings in the space of tower
rows, close to the pictures of their words.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from retrv_r1.model.icm import InformationCompressor
from retrv_r1.model.text_tower import TextTower


def fit_rows(rows: Tensor, vectors: Tensor, ridge: float = 1e-3) -> Tensor:
    """The linear map ``[e, d]`` from mean normed rows of pictures to first-stage vectors.

    Args:
        rows: tower rows of the pictures, ``[n, r, d]``.
        vectors: first-stage vectors of the pictures, ``[n, e]``.
        ridge: ridge penalty, relative to the mean square of a row's component.
    """
    mean = nn.functional.rms_norm(rows, rows.shape[-1:]).mean(1)
    gram = mean.T @ mean / len(mean)
    damping = ridge * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device)
    return torch.linalg.solve(gram + damping, mean.T @ vectors / len(mean)).T


def fit_tokens(
    texts: list[list[int]],
    vectors: Tensor,
    to_vector: Tensor,
    vocabulary: int,
    *,
    steps: int = 600,
    batch: int = 4096,
    seed: int = 0,
) -> Tensor:
    """Token embeddings whose mean over a text, mapped by ``to_vector``, is the text's vector.

    Args:
        texts: token ids of each text.
        vectors: first-stage vectors of the texts, ``[t, e]``.
        to_vector: linear map of :func:`fit_rows`, ``[e, d]``.
    Returns:
        Embeddings of RMS 1, ``[vocabulary, d]``.
    """
    generator, device = torch.Generator().manual_seed(seed), to_vector.device
    start = torch.randn(vocabulary, to_vector.shape[1], generator=generator)
    embedding = nn.Parameter(start.to(device))
    optimizer = torch.optim.Adam([embedding], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    offsets = torch.tensor([0, *(len(ids) for ids in texts)]).cumsum(0)
    flat = torch.tensor([i for ids in texts for i in ids])
    for _ in range(steps):
        chosen = torch.randint(len(texts), (min(batch, len(texts)),), generator=generator)
        lengths = offsets.diff()[chosen]
        starts = lengths.cumsum(0) - lengths
        shift = (offsets[chosen] - starts).repeat_interleave(lengths)
        places = torch.arange(len(shift)) + shift
        rows = nn.functional.rms_norm(embedding, embedding.shape[-1:])
        read, starts = flat[places].to(device), starts.to(device)
        mean = nn.functional.embedding_bag(read, rows, starts, mode="mean")
        goal = vectors[chosen.to(device)]
        likeness = nn.functional.cosine_similarity(mean @ to_vector.T, goal).mean()
        optimizer.zero_grad()
        (1 - likeness).backward()
        optimizer.step()
        schedule.step()
    return nn.functional.rms_norm(embedding.detach(), embedding.shape[-1:])


def fit_text_rows(
    tower: TextTower,
    texts: list[list[int]],
    vectors: Tensor,
    to_vector: Tensor,
    *,
    steps: int = 300,
    batch: int = 2048,
    seed: int = 0,
) -> float:
    """Trains the tower's last layer: a text's mean normed row, by ``to_vector``, is its vector.

    The arguments are those of :func:`fit_tokens`. Returns the mean cosine of the last steps.
    """
    device, generator = to_vector.device, torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(texts), generator=generator)[:_TEXTS].tolist()
    lengths = torch.tensor([len(texts[n]) for n in chosen])
    with torch.no_grad():
        parts = []
        for part in torch.arange(len(chosen)).split(batch):
            ids = torch.tensor([i for n in part.tolist() for i in texts[chosen[n]]], device=device)
            parts.append(tower.states(ids, lengths[part]))
        states, goals = torch.cat(parts), vectors[chosen].to(device)
        owner = torch.arange(len(chosen)).repeat_interleave(lengths).to(device)
        means = torch.zeros(len(chosen), states.shape[1], device=device)
        means = means.index_add(0, owner, states) / lengths[:, None].to(device)
        # The nearest linear map, through the rows of least norm.
        nearest = torch.linalg.lstsq(means, goals).solution.T
        tower.out.weight.copy_(torch.linalg.pinv(to_vector) @ nearest)
        tower.out.bias.zero_()
    starts = (lengths.cumsum(0) - lengths).tolist()
    optimizer = torch.optim.Adam(tower.out.parameters(), lr=2e-2 * float(tower.out.weight.std()))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    seen: list[float] = []
    for _ in range(steps):
        drawn = torch.randint(len(chosen), (min(batch, len(chosen)),), generator=generator)
        places = [torch.arange(starts[n], starts[n] + int(lengths[n])) for n in drawn.tolist()]
        rows = tower.out(states[torch.cat(places).to(device)])
        rows = nn.functional.rms_norm(rows, rows.shape[-1:])
        mean = torch.segment_reduce(rows, "mean", lengths=lengths[drawn].to(device))
        likeness = nn.functional.cosine_similarity(mean @ to_vector.T, goals[drawn.to(device)])
        optimizer.zero_grad()
        (1 - likeness.mean()).backward()
        optimizer.step()
        schedule.step()
        seen.append(float(likeness.detach().mean()))
    return sum(seen[-20:]) / len(seen[-20:])


_TEXTS = 20_000
"""Texts to whose vectors the rows of the text tower are fitted."""


@torch.no_grad()
def initialize_compressor(icm: InformationCompressor, to_vector: Tensor) -> None:
    """Makes content tokens ``(MᵀM)^½ · mean row``, if pooling is uniform; M is ``to_vector``."""
    attention = icm.pool.attention
    values, vectors = torch.linalg.eigh(to_vector.T @ to_vector)
    attention.o_proj.weight.copy_((vectors * values.clamp(min=0).sqrt()) @ vectors.T)
    attention.v_proj.weight.copy_(torch.eye(len(values), device=values.device))


@torch.no_grad()
def initialize_layers(language_model: Any) -> None:
    """Initializes a decoder so that rows attend to similar rows.

    Each key projection begins equal to its query projection: attention then prefers similar rows
    from the first step on, which is how a query finds its candidate. The outputs of layers begin
    small compared with the rows that enter. The last layer copies the rows that it attends to: its
    output projection is the transpose of its value projection.
    """
    for layer in language_model.layers:
        attention = layer.self_attn
        shape = (-1, attention.num_key_value_groups, attention.head_dim)
        heads = attention.q_proj.weight.unflatten(0, shape)
        attention.k_proj.weight.copy_(heads[:, 0].flatten(0, 1))
        attention.o_proj.weight.mul_(0.25)
        layer.mlp.down_proj.weight.mul_(0.25)
    last = language_model.layers[-1].self_attn
    values = last.v_proj.weight.unflatten(0, (-1, last.head_dim))
    copied = values.repeat_interleave(last.num_key_value_groups, 0).flatten(0, 1)
    last.o_proj.weight.copy_(copied.T)
