"""Heads that copy before the first step: a query's words, and what a label's candidate shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from retrv_r1.model.backbone import qwen_config
from retrv_r1.model.config import RetrvR1Config
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.train.copying import can_copy, initialize_copying
from retrv_r1.train.initialize import _beside_agreement, initialize_answer, initialize_layers

WIDTH, USED = 256, 192
QUERY = [201, 202, 203, 204, 205]
SIZE = 20
"""Candidates of the list."""


@pytest.fixture(scope="module")
def copying(tokenizer, backbone_config, processor) -> tuple[Any, Callable[..., Tensor]]:
    """A language model of three layers, and what its second attention adds to given rows."""
    torch.manual_seed(0)
    text = dict(
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        initializer_range=0.04,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
    )
    vision = backbone_config.vision_config.to_dict() | {"out_hidden_size": WIDTH}
    config = RetrvR1Config(
        backbone_config=qwen_config(tokenizer, text, vision), icm={"agreement": True}
    )
    model = RetrvR1ForConditionalGeneration(config).eval()
    tokens = processor.tokens
    initialize_layers(model.language_model)
    initialize_answer(model, tokens.labels, [tokens.answer_start])
    sample = contents(2000)
    initialize_copying(
        model, sample, tokens.labels, tokens.im_start, {tokens.think_start: tokens.end}
    )

    @torch.no_grad()
    def added(rows: Tensor) -> Tensor:
        seen: list[Tensor] = []
        attention = model.language_model.layers[1].self_attn
        hook = attention.register_forward_hook(lambda _, __, out: seen.append(out[0]))
        model.language_model(inputs_embeds=rows[None])
        hook.remove()
        return seen[0][0]

    return model, added


def contents(count: int) -> Tensor:
    """Content tokens, which leave a fourth of the width free, and the first component."""
    generator = torch.Generator().manual_seed(3)
    space = torch.linalg.qr(torch.randn(WIDTH - 1, USED, generator=generator)).Q
    space = torch.nn.functional.pad(space, (0, 0, 1, 0))
    return 0.04 * torch.randn(count, USED, generator=generator) @ space.T


def prompt(model: Any, tokens: Any, written: list[int]) -> tuple[Tensor, Tensor]:
    """Rows of a query, a list and what was written, and the content tokens of the candidates."""
    table = model.get_input_embeddings().weight.detach()
    shown = contents(SIZE)
    rows = [table[tokens.im_start], *table[QUERY], table[tokens.end]]
    for label, content in zip(tokens.labels, shown, strict=False):
        rows += [table[label], content, 0.04 * torch.randn(WIDTH)]
    return torch.stack([*rows, *table[written]]), shown


def nearest(rows: Tensor, known: Tensor) -> list[int]:
    """Number of the nearest of ``known`` for each row."""
    return (normalize(rows, dim=-1) @ normalize(known, dim=-1).T).argmax(1).tolist()


def test_behind_a_label_its_candidates_content_token_is_copied(copying, processor):
    model, added = copying
    tokens = processor.tokens
    # A name is written behind each label; its candidate is still looked at in the name.
    written = [row for k in range(SIZE) for row in (tokens.labels[k], 210 + 2 * k, 211 + 2 * k)]
    rows, shown = prompt(model, tokens, written)
    found = nearest(added(rows)[-len(written) :], shown)
    behind, later = ([found[3 * k + place] == k for k in range(SIZE)] for place in (0, 1))
    assert sum(behind) > 0.7 * SIZE  # by chance one
    assert sum(later) > 0.5 * SIZE


def test_behind_a_word_of_the_query_its_next_word_is_copied(copying, processor):
    model, added = copying
    rows, _ = prompt(model, processor.tokens, QUERY)
    table = model.get_input_embeddings().weight.detach()
    found = nearest(added(rows)[-len(QUERY) : -1], table[: QUERY[-1] + 40])
    right = sum(one == other for one, other in zip(found, QUERY[1:], strict=True))
    assert right >= len(QUERY) - 2, found


def test_behind_a_tag_stands_what_follows_another(copying, processor):
    """Behind "think" the row behind the other tag, the first label's, is found among others."""
    model, added = copying
    tokens = processor.tokens
    rows, _ = prompt(model, tokens, [tokens.think_start])
    likeness = normalize(added(rows)[-1:], dim=-1) @ normalize(rows, dim=-1).T
    first_label = len(QUERY) + 2
    assert first_label in likeness[0].topk(5).indices


def test_nothing_is_written_where_agreement_stands(copying):
    model, _ = copying
    assert not any(part.any() for part in _beside_agreement(model))


def test_only_a_model_of_the_right_shape_can_copy(copying, model):
    assert can_copy(copying[0])
    assert not can_copy(model)
