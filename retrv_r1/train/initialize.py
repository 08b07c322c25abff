"""Where ``pretrain`` starts: a compressor and token embeddings that say what the first stage says.

The first stage has learned which words mean which pictures. Its vectors are close to a linear map
``M`` of a picture's mean tower row, so the new model begins with content tokens that have the same
inner products, ``(MᵀM)^½ · mean row``, and with token embeddings that lie among the tower's rows
where their words' pictures do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from retrv_r1.model.icm import InformationCompressor


def fit_rows(rows: Tensor, vectors: Tensor, ridge: float = 1e-3) -> Tensor:
    """The linear map ``[e, d]`` from pictures' mean normed rows to first-stage vectors.

    Args:
        rows: ``[n, r, d]``.
        vectors: ``[n, e]``.
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
    """Token rows whose mean, mapped by ``to_vector``, is the first stage's vector of a text.

    Args:
        texts: token ids.
        vectors: ``[t, e]``.
        to_vector: what :func:`fit_rows` found, ``[e, d]``.
    Returns:
        Rows of RMS 1, ``[vocabulary, d]``.
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


@torch.no_grad()
def initialize_compressor(icm: InformationCompressor, to_vector: Tensor) -> None:
    """Makes content tokens ``(MᵀM)^½ · mean row``; pooling stays near uniform."""
    attention = icm.pool.attention
    values, vectors = torch.linalg.eigh(to_vector.T @ to_vector)
    attention.o_proj.weight.copy_((vectors * values.clamp(min=0).sqrt()) @ vectors.T)
    attention.v_proj.weight.copy_(torch.eye(len(values), device=values.device))


@torch.no_grad()
def initialize_layers(language_model: Any) -> None:
    """Starts a decoder so that alike rows find each other.

    Every key projection begins as its query projection: attention then prefers rows that are alike
    from the first step on, which is what finding a candidate for a query is. What layers add begins
    small beside the rows that enter, and the last layer copies what it finds: its output is the
    transpose of its values.
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
