"""What a reranker from scratch knows before its first step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize, rms_norm
from transformers import BertConfig

from retrv_r1.model.modeling import PackedItems, RetrvR1ForConditionalGeneration
from retrv_r1.train.corpus import Entry, ListExample
from retrv_r1.train.initialize import (
    fit_contents,
    fit_rows,
    initialize_answer,
    initialize_compressor,
    initialize_layers,
    keep_agreement,
)
from retrv_r1.train.lists import ListCollator
from retrv_r1.train.losses import run_lists

WIDTH = 64


@pytest.fixture
def fresh(make_wide) -> RetrvR1ForConditionalGeneration:
    """A model of the width of `tiny`, with two layers."""
    return make_wide(2)


def text_lists(rng: np.random.Generator, count: int, size: int) -> list[ListExample]:
    """Lists of words; what the answer is does not matter."""
    words = [f"{a}{b}" for a in ("red", "blue", "old", "new") for b in "abcdefghijklmnopqrst"]
    lists = []
    for _ in range(count):
        query, *candidates = (Entry(str(w), None, {}) for w in rng.permutation(words)[: size + 1])
        lists.append(ListExample("cell", "", query, candidates, 0, list(range(size))))
    return lists


@pytest.mark.parametrize("size", [2, 8, 20])
@torch.no_grad()
def test_a_compressed_list_is_answered_by_the_nearest_content_token(fresh, processor, size):
    initialize_layers(fresh.language_model)
    initialize_answer(fresh, processor.tokens.labels, [processor.tokens.answer_start])
    rng = np.random.default_rng(0)
    lists = text_lists(rng, 40, size)
    batch = ListCollator(processor).collate(lists, rng, reason=0.0, moved_labels=0.5)
    out = run_lists(fresh, batch, None)
    queries, candidates = (normalize(x, dim=-1) for x in out.contents(out.content))
    likeness = queries @ candidates.T
    foreign = batch.candidates.owner[None] != torch.arange(len(lists))[:, None]
    nearest = likeness.masked_fill(foreign, -2).argmax(1)
    answers = out.answer_logits()[:, list(processor.tokens.labels)].argmax(1)
    labels = torch.tensor(processor.tokens.labels)[answers]
    share = (labels == batch.candidate_labels[nearest]).float().mean()
    assert share > 0.6, f"{share:.2f} of {len(lists)} answers"


def test_nothing_else_learns_to_write_where_agreement_stands(fresh, processor):
    initialize_layers(fresh.language_model)
    initialize_answer(fresh, processor.tokens.labels, [processor.tokens.answer_start])
    fresh.requires_grad_(True)
    keep_agreement(fresh)
    rng = np.random.default_rng(1)
    batch = ListCollator(processor).collate(text_lists(rng, 4, 6), rng, reason=0.0)
    optimizer = torch.optim.AdamW(fresh.parameters(), lr=1e-2)
    before = {name: weight.detach().clone() for name, weight in fresh.named_parameters()}
    for _ in range(3):
        out = run_lists(fresh, batch, None)
        optimizer.zero_grad()
        (out.token_loss() + out.content_loss()[0]).backward()
        optimizer.step()
    after = dict(fresh.named_parameters())
    table = fresh.get_input_embeddings().weight
    assert not table[:, 0].any() and table[:, 1:].any()
    for layer in fresh.language_model.layers:
        for out in (layer.self_attn.o_proj, layer.mlp.down_proj):
            assert not out.weight[0].any()
    still = {name for name, weight in after.items() if torch.equal(weight, before[name])}
    assert not {n for n in still if ".layers." in n and n.endswith("proj.weight")}
    assert not torch.equal(after["icm.agree.weight"], before["icm.agree.weight"])


def test_a_compressor_that_learns_alone_keeps_it_too(fresh, processor):
    initialize_layers(fresh.language_model)
    initialize_answer(fresh, processor.tokens.labels, [processor.tokens.answer_start])
    fresh.requires_grad_(False)
    fresh.icm.requires_grad_(True)
    keep_agreement(fresh)
    kept = {name for name, weight in fresh.named_parameters() if weight._backward_hooks}
    assert kept == {"icm.content_norm.weight", "icm.relation_token_norm.weight"}


def test_a_model_that_writes_there_already_learns_freely_and_it_is_said(fresh, capsys):
    fresh.requires_grad_(True)
    keep_agreement(fresh)
    assert "nothing keeps it for agreement" in capsys.readouterr().err
    assert not any(weight._backward_hooks for weight in fresh.parameters())


def test_content_tokens_take_the_inner_products_of_given_vectors(make_model):
    """Of items of pictures, of texts and of both, mixed in every batch."""
    config = BertConfig(
        vocab_size=600,
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=24,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = make_model(icm={"agreement": True}, text_tower_config=config)
    model.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(200, 9, WIDTH, generator=generator)
    shown = normalize(rms_norm(pictures, (WIDTH,)).mean(1) @ torch.randn(WIDTH, 24), dim=-1)
    meanings = torch.randn(600, 24, generator=generator)
    pad = model.config.backbone_config.image_token_id
    to_vector = fit_rows(pictures, shown)
    initialize_compressor(model.icm, to_vector)

    def draw() -> tuple[PackedItems, torch.Tensor]:
        items, rows, goals = [], [], []
        for kind in ("picture", "text", "both") * 10:
            goal, ids = torch.zeros(24), []
            if kind != "text":
                n = int(torch.randint(200, (), generator=generator))
                rows.append(pictures[n])
                goal, ids = goal + shown[n], [pad] * 9
            if kind != "picture":
                words = torch.randint(300, 340, (2,), generator=generator)
                goal = goal + normalize(meanings[words].sum(0), dim=0)
                ids = ids + words.tolist()
            items.append(ids)
            goals.append(goal)
        lengths = torch.tensor([0, *map(len, items)]).cumsum(0)
        packed = PackedItems(
            torch.tensor([i for ids in items for i in ids]), lengths, vision_rows=torch.cat(rows)
        )
        return packed, normalize(torch.stack(goals), dim=-1)

    before = fit_contents(model, draw, to_vector, steps=1)
    after = fit_contents(model, draw, to_vector, steps=150, rate=5e-3)
    assert before < 0.6 < 0.9 < after
    items, goals = draw()
    with torch.no_grad():
        content = model.icm.pooled(model.features(items), items.cu_seqlens)
    products = normalize(content, dim=-1) @ normalize(content, dim=-1).T
    error = (products - goals @ goals.T).abs().mean()
    assert error < 0.15 < (goals @ goals.T).abs().mean() * 4
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
