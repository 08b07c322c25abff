"""Initial heads that copy: what chains of thought repeat, a reranker from scratch need not learn.

A chain says the query's words again, and names candidates by what their content tokens show. Both
are one circuit of two layers, an induction head (Olsson et al., arXiv 2209.11895): the first layer
tells every row which token stands before it, and which label or tag was the last; the second finds
the row behind an equal token, and copies it. Behind a query's word stands its next word, and behind
a label its candidate's content token. Token embeddings are in the space of content tokens
(``initialize.py``), so the copied row already ranks the words of its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration


def can_copy(model: RetrvR1ForConditionalGeneration) -> bool:
    """Whether a model has the layers, heads and width that :func:`initialize_copying` needs."""
    text, heads = model.config.get_text_config(), model.language_model.layers[0].self_attn
    shape = (text.num_attention_heads, heads.num_key_value_groups, heads.head_dim)
    return text.num_hidden_layers > 2 and shape == (4, 1, 64) and text.hidden_size == 256


@torch.no_grad()
def initialize_copying(
    model: RetrvR1ForConditionalGeneration,
    contents: Tensor,
    labels: Sequence[int],
    start: int,
    follows: Mapping[int, int],
    *,
    seed: int = 0,
) -> None:
    """Sets heads 1 and 2 of the first layer and the four heads of the second.

    Rows keep their content in the directions in which content tokens vary; the others are free for
    notes: the code of the token before, the code of the last label, and two flags. Needs what
    :func:`can_copy` asks for, and content tokens that leave a fourth of the width free.

    Args:
        contents: a sample of content tokens, ``[n, d]``.
        labels: token ids of the labels.
        start: id of the token that begins a prompt: where nothing is found, it is looked at, and
            nothing is copied.
        follows: tokens that behave like another one: the row behind the value is copied at the key,
            and where the key is the last tag.
    """
    layers: Any = model.language_model.layers
    first, second = layers[0].self_attn, layers[1].self_attn
    width, hidden = first.head_dim, contents.shape[1]
    half = width // 2
    unit = model.config.get_text_config().initializer_range
    generator = torch.Generator().manual_seed(seed)
    normed = torch.nn.functional.rms_norm(contents, (hidden,))[:, 1:]
    # Nothing is written to the first component, which is kept for agreement.
    basis = torch.linalg.eigh(normed.T @ normed).eigenvectors.flip(1)
    basis = torch.nn.functional.pad(basis, (0, 0, 1, 0))
    content, notes = basis[:, : hidden * 3 // 4], basis[:, hidden * 3 // 4 :]
    to_before, to_last = notes[:, :_BEFORE], notes[:, _BEFORE : _BEFORE + _LAST]
    is_label, is_start = notes[:, -2], notes[:, -1]

    table: Any = model.get_input_embeddings().weight
    table.copy_(
        unit * torch.nn.functional.rms_norm(table @ content @ content.T, (hidden,), eps=1e-12)
    )
    # Codes of tokens: random directions of their whitened embeddings.
    rows = table @ content / unit
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    white = vectors * (values + 0.1 * values.mean()).rsqrt() @ vectors.T
    mixed = torch.linalg.qr(torch.randn(len(white), _BEFORE, generator=generator)).Q.T
    code = mixed @ white @ content.T
    alike = content @ torch.linalg.pinv(mixed @ white)
    for token, other in follows.items():
        table[token] += alike @ (code @ (table[other] - table[token]))
    table[start] = unit * hidden**0.5 * is_start
    code = code + torch.outer(torch.randn(_BEFORE, generator=generator), is_start) / hidden**0.5
    for token in (*labels, *follows):
        table[token] += _FLAG * unit * is_label

    def clear(attention: Any, head: int) -> slice:
        span = slice(head * width, (head + 1) * width)
        for part in (attention.q_proj, attention.k_proj, attention.v_proj):
            part.weight[span], part.bias[span] = 0, 0
        attention.o_proj.weight[:, span] = 0
        return span

    rope = model.config.get_text_config().rope_parameters
    rotation = rope["rope_theta"] ** (-torch.arange(half) / half)

    for out in (first.o_proj, layers[0].mlp.down_proj):  # the rest of the layer writes no notes
        out.weight.sub_(notes @ (notes.T @ out.weight))
    # First layer, head 1: the row before, of frequencies that turn fast.
    at = clear(first, 1).start
    strength = width**0.25 * _PEAK**0.5
    first.q_proj.bias[at : at + _FAST] = strength
    first.k_proj.bias[at : at + _FAST] = strength * torch.cos(rotation[:_FAST])
    first.k_proj.bias[at + half : at + half + _FAST] = strength * torch.sin(rotation[:_FAST])
    first.v_proj.weight[at : at + _BEFORE] = code
    first.o_proj.weight[:, at : at + _BEFORE] = unit * to_before
    # First layer, head 2: the last label or tag, and the start where there is none.
    at = clear(first, 2).start
    first.q_proj.bias[at + _SLOWER : at + half] = _RECENT
    first.k_proj.weight[at + _SLOWER : at + half] = is_label + 0.2 * is_start
    first.v_proj.weight[at : at + _LAST] = code[:_LAST]
    first.o_proj.weight[:, at : at + _LAST] = unit * to_last
    # Second layer: heads 0 and 1 look behind the same token, 2 and 3 behind the last label.
    for head in range(4):
        at = clear(second, head).start
        asked, kept = (code, to_before) if head < 2 else (to_last.T, to_before[:, :_LAST])
        strength = (width**0.5 * _MATCH / len(asked)) ** 0.5
        slow = _slow_places(len(asked), half) + at
        second.q_proj.weight[slow] = strength * asked
        second.k_proj.weight[slow] = strength * kept.T
        second.q_proj.bias[at + half - 1] = width**0.5 * _NOTHING / hidden**0.5
        second.k_proj.weight[at + half - 1] = is_start
        copied = content[:, (head % 2) * width : (head % 2 + 1) * width]
        second.v_proj.weight[at : at + width] = copied.T
        second.o_proj.weight[:, at : at + width] = _COPIED * unit * copied
    model.language_model.norm.weight.mul_(_CONFIDENT)


def _slow_places(count: int, half: int) -> Tensor:
    """Places in a head of the slowest rotations but one, in pairs."""
    pairs = torch.arange(half - 1 - count // 2, half - 1)
    return torch.cat([pairs, pairs + half])


_BEFORE, _LAST = 36, 24
"""Widths of the codes of the token before and of the last label."""
_FLAG = 7.0
"""Flag of labels, in units of a row's RMS."""
_FAST, _PEAK = 8, 12.0
"""Frequencies that find the row before, and the score of each at the peak."""
_SLOWER, _RECENT = 3, 5.0
"""First frequency that tells how far back a label is, and what it weighs."""
_MATCH, _NOTHING = 22.0, 10.0
"""Scores of an equal code, and of the start, before norms take a part of them."""
_COPIED = 2.0
"""Size of a copied row, in units of an embedding's."""
_CONFIDENT = 2.0
"""Factor of all logits, which are cosines at the start."""
