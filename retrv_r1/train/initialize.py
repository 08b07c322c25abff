"""Initial weights of ``read``: a reranker that begins with what the first stage knows.

The first stage has learned which words mean which pictures. Its vectors are close to a linear map
``M`` of a picture's mean tower row. The new model therefore begins with content tokens that have
the same inner products, ``(MᵀM)^½ · mean row``, which a few hundred steps make more exact; with
token embeddings close to the pictures of their words; and with layers that answer a compressed list
by the likeness of content tokens. It has to learn what is better than the first stage, and not the
first stage once more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from retrv_r1.model.icm import InformationCompressor
from retrv_r1.model.modeling import PackedItems, RetrvR1ForConditionalGeneration


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


def nearest_rotation(to_vector: Tensor) -> Tensor:
    """The map with orthonormal rows that is nearest to ``to_vector``, ``[e, d]``.

    Content tokens begin as first-stage vectors, mapped by its transpose.
    """
    left, _, right = torch.linalg.svd(to_vector, full_matrices=False)
    return left @ right


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
        to_vector: linear map from the space of token embeddings to that of the vectors, ``[e, d]``.
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


@torch.no_grad()
def initialize_compressor(icm: InformationCompressor, to_vector: Tensor) -> None:
    """Makes content tokens ``(MᵀM)^½ · mean row``, if pooling is uniform; M is ``to_vector``."""
    attention = icm.pool.attention
    values, vectors = torch.linalg.eigh(to_vector.T @ to_vector)
    attention.o_proj.weight.copy_((vectors * values.clamp(min=0).sqrt()) @ vectors.T)
    attention.v_proj.weight.copy_(torch.eye(len(values), device=values.device))
    attention.q_proj.weight.mul_(0.1)  # nearly uniform


def fit_contents(
    model: RetrvR1ForConditionalGeneration,
    draw: Callable[[], tuple[PackedItems, Tensor]],
    to_vector: Tensor,
    *,
    steps: int = 400,
    rate: float = 2e-3,
) -> float:
    """Trains content tokens to have the inner products of first-stage vectors.

    What learns are ATT₁ of the compressor and the last layer of the text tower.

    Args:
        draw: gives packed items with their vision rows, and their first-stage vectors ``[m, e]``.
        to_vector: linear map of :func:`fit_rows`, ``[e, d]``.
    Returns:
        Mean cosine of content tokens and rotated vectors in the last steps.
    """
    rotation = nearest_rotation(to_vector)
    learned = [*model.icm.pool.parameters()]
    if model.text_tower is not None:
        learned += model.text_tower.out.parameters()
    optimizer = torch.optim.Adam(learned, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    seen: list[float] = []
    for _ in range(steps):
        items, vectors = draw()
        content = model.icm.pooled(model.features(items), items.cu_seqlens)
        likeness = nn.functional.cosine_similarity(content, vectors @ rotation).mean()
        optimizer.zero_grad()
        (1 - likeness).backward()
        optimizer.step()
        schedule.step()
        seen.append(float(likeness.detach()))
    model.zero_grad()
    return sum(seen[-20:]) / len(seen[-20:])


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
        attention.o_proj.weight.mul_(_QUIET)
        layer.mlp.down_proj.weight.mul_(_QUIET)
    last = language_model.layers[-1].self_attn
    values = last.v_proj.weight.unflatten(0, (-1, last.head_dim))
    copied = values.repeat_interleave(last.num_key_value_groups, 0).flatten(0, 1)
    last.o_proj.weight.copy_(copied.T)


@torch.no_grad()
def initialize_answer(
    model: RetrvR1ForConditionalGeneration, labels: Sequence[int], before: Sequence[int]
) -> None:
    """Lets a compressed list be answered by agreement from the first step on.

    Each candidate is shown as label, content token, relation token. The first component of rows is
    kept for agreement, which relation tokens have there and nothing else (:func:`keep_agreement`).
    Head 0 of the first layer copies every row's second row before it, so a relation token also
    carries its label; head 0 of the last layer attends by the first component where a label comes
    next, and copies the label. The answer then is the candidate whose content token is the query's
    nearest, as the first stage says, and training goes on from there. Needs ``icm.agreement``.

    Args:
        labels: token ids of the labels, whose embeddings the two heads pass on.
        before: token ids behind which a label comes next.
    """
    assert model.icm.agree is not None
    for weight in _beside_agreement(model):
        weight.zero_()
    agree = model.icm.agree.weight
    agree.zero_()
    agree[0] = _AGREEMENT / agree.shape[1]
    layers: Any = model.language_model.layers
    first, last = layers[0].self_attn, layers[-1].self_attn
    width, half = first.head_dim, first.head_dim // 2
    # The directions in which labels differ most.
    table: Any = model.get_input_embeddings().weight
    shown = table[list(labels)]
    shown = shown - shown.mean(0)
    passed = torch.linalg.svd(shown, full_matrices=False).Vh[:width]
    passed[:, 0] = 0  # exactly
    last.o_proj.weight.mul_(_QUIET)
    fast = torch.arange(min(_FAST, half))
    slowest = torch.tensor([half - 1])
    for attention, scale, pairs in ((first, _COPIED, fast), (last, _ANSWERED, slowest)):
        clear_head(attention, 0, pairs)
        attention.v_proj.weight[: len(passed)] = passed
        attention.o_proj.weight[:, : len(passed)] = scale * passed.T
    # Position: a sum of cosines with its peak two rows back, of the frequencies that turn fast.
    rope = model.config.get_text_config().rope_parameters
    rotation = rope["rope_theta"] ** (-torch.arange(half) / half)
    strength = width**0.25 * _PEAK**0.5
    first.q_proj.bias[fast] = strength
    first.k_proj.bias[fast] = strength * torch.cos(2 * rotation[fast])
    first.k_proj.bias[half + fast] = strength * torch.sin(2 * rotation[fast])
    # Content: the slowest frequency hardly turns within a list.
    strength = width**0.25 * _SHARPNESS**0.5
    asking = nn.functional.normalize(table[list(before)], dim=-1).sum(0) / table.shape[1] ** 0.5
    last.q_proj.weight[half - 1] = strength * asking
    last.k_proj.weight[half - 1, 0] = strength


def clear_head(attention: Any, head: int, pairs: Tensor) -> int:
    """Takes a head's function away, and its keys in pairs of a rotation; returns its first place.

    What is not used then keeps random keys and values, so that all of the head can learn.
    """
    width = attention.head_dim
    at = head * width
    span = slice(at, at + width)
    attention.q_proj.weight[span], attention.q_proj.bias[span] = 0, 0
    attention.o_proj.weight[:, span] = 0
    for places in (at + pairs, at + width // 2 + pairs):
        attention.k_proj.weight[places], attention.k_proj.bias[places] = 0, 0
    return at


def keep_agreement(model: RetrvR1ForConditionalGeneration) -> None:
    """Keeps the first component of rows for agreement while the model trains.

    It takes the gradients of all weights that would write there, if they are zero, as
    :func:`initialize_answer` leaves them, but for rounding. Otherwise it says that it does nothing.
    """
    parts = _beside_agreement(model)
    if model.icm.agree is None:
        return
    if any((part.abs() > _ROUNDING).any() for part in parts):
        notice = "the first component of rows is in use: nothing keeps it for agreement"
        print(notice, file=sys.stderr, flush=True)
        return
    for part in parts:
        part.zero_()
    for weight, place in _places_beside_agreement(model):
        if weight.requires_grad:
            weight.register_hook(lambda gradient, place=place: _zeroed(gradient, place))


def _zeroed(gradient: Tensor, place: tuple[slice | int, ...]) -> Tensor:
    gradient = gradient.clone()
    gradient[place] = 0
    return gradient


def _beside_agreement(model: RetrvR1ForConditionalGeneration) -> list[Tensor]:
    """The parts of weights that write to the first component, but for agreement's own."""
    return [weight.detach()[place] for weight, place in _places_beside_agreement(model)]


def _places_beside_agreement(
    model: RetrvR1ForConditionalGeneration,
) -> list[tuple[nn.Parameter, tuple[slice | int, ...]]]:
    every = slice(None)
    norms = (model.icm.content_norm, model.icm.relation_token_norm)
    memory = () if model.icm.memory is None else (model.icm.memory.out.weight,)
    layers = model.language_model.layers
    outputs = [out.weight for x in layers for out in (x.self_attn.o_proj, x.mlp.down_proj)]
    return [
        (model.get_input_embeddings().weight, (every, 0)),
        *((norm.weight, (0,)) for norm in norms),
        *((weight, (0, every)) for weight in (*outputs, *memory)),
    ]


_ROUNDING = 1e-6
_QUIET = 0.05
"""Factor of what all else adds to a row at the start."""
_AGREEMENT = 4.0
"""First component of a relation token whose candidate has a cosine of 1 to the query."""
_COPIED, _ANSWERED = 0.08, 0.5
"""Sizes of what head 0 of the first and of the last layer add."""
_FAST, _PEAK = 8, 12.0
"""Frequencies that find the second row before, and the score of each at the peak."""
_SHARPNESS = 8.0
"""Score of a first component of one, in normed rows."""
