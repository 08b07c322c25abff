"""The start of `pretrain`: what the first stage knows, as weights of a new model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from retrv_r1.model.config import ICMConfig
from retrv_r1.model.icm import InformationCompressor
from retrv_r1.train.initialize import fit_rows, fit_tokens, initialize_compressor, initialize_layers

D, E = 16, 6


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normed_mean(rows: torch.Tensor) -> torch.Tensor:
    return nn.functional.rms_norm(rows, rows.shape[-1:]).mean(-2)


def test_a_linear_first_stage_is_found(generator):
    rows = torch.randn(300, 4, D, generator=generator)
    truth = torch.randn(E, D, generator=generator)
    found = fit_rows(rows, normed_mean(rows) @ truth.T, ridge=1e-6)
    assert torch.allclose(found, truth, atol=1e-5)  # the ridge alone shifts weights by 3e-6


def test_token_rows_say_what_their_texts_do(generator):
    words = torch.randn(20, E, generator=generator)
    texts = [torch.randint(20, (n,), generator=generator).tolist() for n in (1, 2, 3, 4) * 60]
    goal = nn.functional.normalize(torch.stack([words[ids].mean(0) for ids in texts]), dim=-1)
    to_vector = torch.randn(E, D, generator=generator)
    rows = fit_tokens(texts, goal, to_vector, vocabulary=25, steps=300)
    assert rows.shape == (25, D)
    assert torch.allclose(rows.pow(2).mean(-1), torch.ones(25))
    said = torch.stack([rows[ids].mean(0) for ids in texts]) @ to_vector.T
    assert nn.functional.cosine_similarity(said, goal).mean() > 0.95


def test_content_tokens_have_the_first_stages_inner_products(generator):
    torch.manual_seed(0)
    icm = InformationCompressor(D, ICMConfig(heads_pool=4, heads_relate=4))
    icm.reset_parameters(0.02, 0.02)
    to_vector = torch.randn(E, D, generator=generator)
    initialize_compressor(icm, to_vector)
    with torch.no_grad():
        icm.pool.attention.q_proj.weight.zero_()  # exactly uniform pooling
        rows = torch.randn(8, 5, D, generator=generator)
        content = icm.content(rows.flatten(0, 1), torch.arange(9) * 5)
    ours = nn.functional.normalize(content, dim=-1)
    theirs = nn.functional.normalize(normed_mean(rows) @ to_vector.T, dim=-1)
    assert torch.allclose(ours @ ours.T, theirs @ theirs.T, atol=5e-6)  # float32 eigenvectors: 6e-7


def test_keys_start_as_queries_and_the_last_layer_copies(make_model):
    decoder = make_model(seed=3).language_model
    initialize_layers(decoder)
    for layer in decoder.layers:
        attention = layer.self_attn
        groups = attention.num_key_value_groups
        heads = attention.q_proj.weight.unflatten(0, (-1, attention.head_dim))
        keys = attention.k_proj.weight.unflatten(0, (-1, attention.head_dim))
        assert torch.equal(heads[::groups], keys)
    values = attention.v_proj.weight.unflatten(0, (-1, attention.head_dim))
    copied = values.repeat_interleave(groups, 0).flatten(0, 1)
    assert torch.equal(attention.o_proj.weight, copied.T)
    assert torch.linalg.eigvalsh(attention.o_proj.weight @ copied).min() > -1e-6
