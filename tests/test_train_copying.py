"""Heads that copy before the first step: a query's words, and what a label's candidate shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import small_stages as stages
import torch
from torch import Tensor
from torch.nn.functional import normalize

from retrv_r1.train import run
from retrv_r1.train.config import read_config
from retrv_r1.train.copying import can_copy, initialize_copying
from retrv_r1.train.initialize import initialize_answer, initialize_layers
from retrv_r1.train.stage import build_stage

pytest_plugins = ("training_fixtures",)
pytestmark = stages.pytestmark
config, folder = stages.config, stages.folder
WIDTH, USED = 256, 192
QUERY = [201, 202, 203, 204, 205]
SIZE = 20
"""Candidates of the list."""


@pytest.fixture(scope="module")
def copying(make_wide, processor) -> tuple[Any, Callable[..., Tensor]]:
    """A language model of three layers, and what its second attention adds to given rows."""
    model = make_wide(3)
    tokens = processor.tokens
    tags = [tokens.think_start, tokens.answer_start]
    initialize_layers(model.language_model)
    initialize_copying(
        model,
        contents(2000),
        tokens.labels,
        tokens.im_start,
        {tokens.think_start: tokens.end},
        tags,
    )
    initialize_answer(model, tokens.labels, [tokens.answer_start])

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
    noise = torch.randn(count, WIDTH, generator=generator)
    return 0.04 * (torch.randn(count, USED, generator=generator) @ space.T + 0.05 * noise)


def prompt(model: Any, tokens: Any, written: list[int]) -> tuple[Tensor, Tensor]:
    """Rows of a query, a list and what was written, and the content tokens of the candidates."""
    table = model.get_input_embeddings().weight.detach()
    shown = contents(SIZE)
    related = 0.04 * torch.randn(SIZE, WIDTH, generator=torch.Generator().manual_seed(4))
    rows = [table[tokens.im_start], *table[QUERY], table[tokens.end]]
    for label, content, relation in zip(tokens.labels, shown, related, strict=False):
        rows += [table[label], content, relation]
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
    assert sum(behind) > 0.6 * SIZE  # by chance one
    assert sum(later) > 0.3 * SIZE


def test_behind_a_word_of_the_query_its_next_word_is_copied(copying, processor):
    model, added = copying
    rows, _ = prompt(model, processor.tokens, QUERY)
    table = model.get_input_embeddings().weight.detach()
    found = nearest(added(rows)[-len(QUERY) : -1], table[: QUERY[-1] + 40])
    right = sum(one == other for one, other in zip(found, QUERY[1:], strict=True))
    assert right > 1, found  # by chance none


def test_after_a_tag_the_row_that_follows_the_other_is_among_the_five_best(copying, processor):
    model, added = copying
    tokens = processor.tokens
    rows, _ = prompt(model, tokens, [tokens.think_start])
    likeness = normalize(added(rows)[-1:], dim=-1) @ normalize(rows, dim=-1).T
    first_label = len(QUERY) + 2  # follows the other tag
    assert first_label in likeness[0].topk(5).indices


def test_all_of_the_heads_can_learn(copying, processor):
    """No weight has a gradient of exactly zero for ever, as in a product of two zeros."""
    model, _ = copying
    rows, _ = prompt(model, processor.tokens, QUERY)
    model.zero_grad()
    model.language_model(inputs_embeds=rows[None]).last_hidden_state.square().mean().backward()
    for layer in model.language_model.layers:
        attention = layer.self_attn
        for part in (attention.q_proj, attention.v_proj):
            held = ~(part.weight.any(1) | part.weight.grad.any(1))
            assert not held.any()
        held = ~(attention.o_proj.weight.any(0) | attention.o_proj.weight.grad.any(0))
        assert not held.any()


def test_nothing_is_written_where_agreement_stands(copying):
    model, _ = copying
    table = model.get_input_embeddings().weight
    assert not table[:, 0].any()
    for layer in model.language_model.layers:
        assert not layer.self_attn.o_proj.weight[0].any()
        assert not layer.mlp.down_proj.weight[0].any()


def test_a_model_of_the_shipped_shape_begins_with_these_heads(config, folder):
    out = folder / "wide" / "embed"
    embed: dict[str, Any] = stages.EMBED
    vision = embed["vision"] | {"out_hidden_size": WIDTH}
    wide: dict[str, Any] = {**embed, "vision": vision, "embedding_dim": USED}
    short = stages.LOOP | {"steps": 1}
    run("embed", config("embed", model=wide, out=str(out), loop=short), dtype="float32")
    init = {"embed": str(out / "final")}
    heads = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]}
    text = stages.BACKBONE["text"] | heads | {"rope_parameters": rope}
    shape: dict[str, Any] = stages.BACKBONE | {"text": text}
    shape["icm"] = shape["icm"] | {"agreement": True}
    for tower in (True, False):
        path = config(
            "read", model=shape | {"text_tower": tower}, init=init, out=str(out.parent / "read")
        )
        model: Any = build_stage(read_config("read", path)).model
        assert can_copy(model) == tower
        doubled = model.language_model.norm.weight == 2
        assert doubled.all() if tower else not doubled.any()
