"""Initial heads that copy: what chains of thought repeat, a reranker from scratch need not learn.

A chain says the query's words again, and names candidates by what their content tokens show. Both
are one circuit of two layers, an induction head (Olsson et al., arXiv 2209.11895). The first layer
notes in every row which token stands before it, and which label or tag was the last. The second
layer finds the row whose token before equals the row's own token, and copies it: when a word of
the query is written, its row receives the word that follows it in the query. It also finds the row
whose token before is the last label, which is the content token of that candidate. Where
the compressor has a text tower, token embeddings lie where content tokens lie (``read.py``), so
that a copied content token ranks the words of its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, rms_norm

from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.train.initialize import clear_head


def can_copy(model: RetrvR1ForConditionalGeneration) -> bool:
    """Whether a model has the layers, heads and width that :func:`initialize_copying` needs."""
    text, heads = model.config.get_text_config(), model.language_model.layers[0].self_attn
    shape = (text.hidden_size, text.num_attention_heads, heads.num_key_value_groups, heads.head_dim)
    slow = text.rope_parameters["rope_theta"] >= 1e6
    layers = text.num_hidden_layers > 2
    return layers and slow and shape == (256, 4, 1, 64) and model.text_tower is not None


@torch.no_grad()
def initialize_copying(
    model: RetrvR1ForConditionalGeneration,
    contents: Tensor,
    labels: Sequence[int],
    start: int,
    follows: Mapping[int, int],
    tags: Sequence[int],
    *,
    seed: int = 0,
) -> None:
    """Sets heads 1 and 2 of the first layer, and all four of the second.

    Rows keep their content in three fourths of the width, the directions in which content tokens
    vary. The others are free for notes, so token embeddings and what else the first layer adds are
    projected out of them. The final norm is doubled, because a copy ranks tokens by cosines alone.
    Nothing is written to the first component (:func:`~retrv_r1.train.initialize.keep_agreement`).

    Args:
        contents: a sample of content tokens, ``[n, d]``, that leaves a fourth of the width free.
        labels: token ids of the labels.
        start: id of the token that begins a prompt. Rows that find no match attend to it, and copy
            nothing.
        follows: maps a token to one that it imitates: its row receives what stands after the other.
        tags: ids of the tokens that end what is said of the last label.
    """
    room = _make_room(model, contents)
    code = _encode(model, room, start, follows, seed)
    table: Any = model.get_input_embeddings().weight
    for token in (*labels, *tags):
        table[token] += _FLAG * room.unit * room.is_label
    layers: Any = model.language_model.layers
    _note_tokens(layers[0].self_attn, model.config.get_text_config().rope_parameters, room, code)
    _copy_matches(layers[1].self_attn, room, code)
    model.language_model.norm.weight.mul_(_CONFIDENT)


class _Room(NamedTuple):
    """Directions of rows, ``[d, n]`` or ``[d]``, and the RMS of an embedding."""

    content: Tensor
    before: Tensor
    last: Tensor
    is_label: Tensor
    is_start: Tensor
    unit: float


def _make_room(model: RetrvR1ForConditionalGeneration, contents: Tensor) -> _Room:
    """Splits the width into content and notes, and takes embeddings out of the notes."""
    hidden = contents.shape[1]
    used = hidden * 3 // 4
    normed = rms_norm(contents, (hidden,))[:, 1:]
    basis = torch.linalg.eigh(normed.T @ normed).eigenvectors.flip(1)
    basis = pad(basis, (0, 0, 1, 0))
    content, notes = basis[:, :used], basis[:, used:]
    unit = model.config.get_text_config().initializer_range
    table: Any = model.get_input_embeddings().weight
    table.copy_(unit * rms_norm(table @ content @ content.T, (hidden,), eps=1e-12))
    first: Any = model.language_model.layers[0]
    for out in (first.self_attn.o_proj, first.mlp.down_proj):
        out.weight.sub_(notes @ (notes.T @ out.weight))
    before, last = notes[:, :_BEFORE], notes[:, _BEFORE : _BEFORE + _LAST]
    return _Room(content, before, last, notes[:, -2], notes[:, -1], unit)


def _encode(
    model: RetrvR1ForConditionalGeneration,
    room: _Room,
    start: int,
    follows: Mapping[int, int],
    seed: int,
) -> Tensor:
    """The map ``[n, d]`` from rows to codes that tell tokens apart: whitened random directions.

    It gives tokens that follow another the other's code, and the start token no content.
    """
    generator = torch.Generator().manual_seed(seed)
    table: Any = model.get_input_embeddings().weight
    hidden = table.shape[1]
    rows = table @ room.content / room.unit
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    white = vectors * (values + 0.1 * values.mean()).rsqrt() @ vectors.T
    drawn = torch.randn(len(white), _BEFORE, generator=generator).to(table)
    mixed = torch.linalg.qr(drawn).Q.T @ white
    code, alike = mixed @ room.content.T, room.content @ torch.linalg.pinv(mixed)
    for token, other in follows.items():
        shifted = table[token] + alike @ (code @ (table[other] - table[token]))
        table[token] = room.unit * rms_norm(shifted, (hidden,))
    table[start] = room.unit * hidden**0.5 * room.is_start
    own = torch.randn(_BEFORE, generator=generator).to(table)
    return code + torch.outer(own, room.is_start) / hidden**0.5


def _note_tokens(attention: Any, rope: Mapping[str, Any], room: _Room, code: Tensor) -> None:
    """Head 1 notes the token before, by position; head 2 the last label or tag, or the start."""
    width = attention.head_dim
    half = width // 2
    rotation = rope["rope_theta"] ** (-torch.arange(half) / half)
    pairs = torch.arange(_FAST)
    at = clear_head(attention, 1, pairs)
    strength = width**0.25 * _PEAK**0.5
    attention.q_proj.bias[at + pairs] = strength
    attention.k_proj.bias[at + pairs] = (strength * torch.cos(rotation[pairs])).to(code)
    attention.k_proj.bias[at + half + pairs] = (strength * torch.sin(rotation[pairs])).to(code)
    attention.v_proj.weight[at : at + _BEFORE] = code
    attention.o_proj.weight[:, at : at + _BEFORE] = room.unit * room.before
    pairs = torch.arange(_SLOWER, half)
    at = clear_head(attention, 2, pairs)
    attention.q_proj.bias[at + pairs] = _RECENT
    attention.k_proj.weight[at + pairs] = room.is_label + _START * room.is_start
    attention.v_proj.weight[at : at + _LAST] = code[:_LAST]
    attention.o_proj.weight[:, at : at + _LAST] = room.unit * room.last


def _copy_matches(attention: Any, room: _Room, code: Tensor) -> None:
    """Heads 0 and 1 look after the row's own token, 2 and 3 after the last label.

    Each of a pair copies one half of the directions in which content varies most.
    """
    width, hidden = attention.head_dim, code.shape[1]
    half = width // 2
    for head in range(4):
        own = head < 2
        asked, kept = (code, room.before) if own else (room.last.T, room.before[:, :_LAST])
        # Slow rotations compare, all but the slowest, which finds the start.
        pairs = torch.arange(half - 1 - len(asked) // 2, half)
        at = clear_head(attention, head, pairs)
        places = at + torch.cat([pairs[:-1], half + pairs[:-1]])
        strength = (width**0.5 * _MATCH / len(asked)) ** 0.5
        attention.q_proj.weight[places] = strength * asked
        attention.k_proj.weight[places] = strength * kept.T
        attention.q_proj.bias[at + half - 1] = width**0.5 * _NOTHING / hidden**0.5
        attention.k_proj.weight[at + half - 1] = room.is_start
        part = (head % 2) * width
        copied = room.content[:, part : part + width]
        attention.v_proj.weight[at : at + width] = copied.T
        attention.o_proj.weight[:, at : at + width] = _COPIED * room.unit * copied


_BEFORE, _LAST = 36, 24
"""Widths of the codes of the token before and of the last label."""
_FLAG = 7.0
"""Flag of labels and tags, in units of a row's RMS."""
_FAST, _PEAK = 8, 12.0
"""Frequencies that find the row before, and the score of each at the peak."""
_SLOWER, _RECENT, _START = 3, 5.0, 0.2
"""First frequency that tells how far back a label is, what it weighs, and the start beside it."""
_MATCH, _NOTHING = 22.0, 10.0
"""Scores of an equal code, and of the start, before norms take a part of them."""
_COPIED = 2.0
"""Size of a copied row, in units of an embedding's."""
_CONFIDENT = 2.0
"""Factor of the final norm."""
