"""Anchors, and the start of `pretrain`: what the first stage knows, as weights of a new model."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from retrv_r1.model.config import ICMConfig
from retrv_r1.model.icm import InformationCompressor
from retrv_r1.train.anchors import Anchors, Concepts
from retrv_r1.train.corpus import Cell, Corpus, Entry
from retrv_r1.train.initialize import fit_rows, fit_tokens, initialize_compressor, initialize_layers

RED, BLUE = {"code": "R"}, {"code": "B"}
D, E = 16, 6


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def concepts() -> Concepts:
    pool = [
        *(Entry(None, 0, RED), Entry(None, 1, BLUE), Entry("blue", None, BLUE)),
        Entry("unknown", None, {}),
    ]
    queries = [
        Entry("a colour", None, {}),
        Entry("in blue", 0, {}),
        Entry("no one knows", None, {}),
    ]
    positives = [np.array([0, 1]), np.array([1, 2]), np.array([3])]
    corpus = object.__new__(Corpus)
    corpus.cells = {"c": Cell("c", queries, pool, positives, ("Find.",))}
    return Concepts(corpus)


def test_candidates_stand_for_their_code_and_queries_for_what_is_relevant(concepts):
    blue, red = 0, 1
    assert concepts.count == 2
    assert concepts.of == {
        (None, 0): (red,),
        (None, 1): (blue,),
        ("blue", None): (blue,),
        ("a colour", None): (blue, red),
        ("in blue", 0): (blue,),
    }
    keys = [("blue", None), ("unknown", None), ("a colour", None), ("never seen", 7)]
    assert concepts.goals(keys).tolist() == [[blue, -1], [-1, -1], [blue, red], [-1, -1]]
    assert concepts.goals([]).shape == (0, 1)


def test_data_that_names_no_concepts_has_no_anchors():
    corpus = object.__new__(Corpus)
    entry = Entry("a", None, {})
    corpus.cells = {"c": Cell("c", [entry], [entry], [np.array([0])], ("Find.",))}
    concepts = Concepts(corpus)
    assert concepts.count == 0 and concepts.of == {}
    anchors = anchors_of(concepts.count, 8)
    loss, hits = anchors.loss(torch.randn(1, 8), concepts.goals([entry.key]))
    assert float(loss) == 0 and hits == 0


def test_anchors_start_at_the_mean_direction_of_their_pictures():
    class Mean:
        def pooled(self, features, offsets):
            assert offsets.tolist() == [0, 2, 4, 6]
            return features.unflatten(0, (3, 2)).mean(1)

    anchors = anchors_of(3, 4)
    before = anchors.weight[2].clone()
    states = torch.eye(4)[[0, 1, 2]] * torch.tensor([[1.0], [5.0], [2.0]])
    rows = torch.stack([states - 3, states + 3], 1)
    anchors.initialize(Mean(), rows, torch.tensor([[0, -1], [0, 1], [-1, -1]]))
    half = math.sqrt(2)
    expected = torch.tensor([[half, half, 0, 0], [0, 2.0, 0, 0]])
    assert torch.allclose(anchors.weight[:2], expected)
    assert torch.equal(anchors.weight[2], before)


def test_the_loss_is_the_cross_entropy_over_all_anchors(generator):
    anchors = anchors_of(5, 8, temperature=0.5)
    states = torch.randn(3, 8, generator=generator)
    goals = torch.tensor([[4, -1], [-1, -1], [0, 2]])
    loss, hits = anchors.loss(states, goals, smoothing=0.1)
    cosine = nn.functional.cosine_similarity(states[:, None], anchors.weight[None], dim=-1)
    target = torch.zeros(3, 5)
    target[0, 4] = 1
    target[2, 0] = target[2, 2] = 0.5
    target = (0.9 * target + 0.1 / 5)[[0, 2]]
    expected = nn.functional.cross_entropy(cosine[[0, 2]] / 0.5, target)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    nearest = cosine.argmax(1).tolist()
    assert hits == pytest.approx(((nearest[0] == 4) + (nearest[2] in (0, 2))) / 2)


def test_where_nothing_is_known_there_is_no_loss_and_no_gradient():
    anchors = anchors_of(5, 8)
    states = torch.randn(2, 8, requires_grad=True)
    loss, hits = anchors.loss(states, torch.full((2, 1), -1))
    assert float(loss) == 0 and hits == 0 and not loss.requires_grad
    loss, _ = anchors.loss(states, torch.tensor([[-1], [3]]))
    loss.backward()
    assert not states.grad[0].any() and states.grad[1].any()


def anchors_of(count: int, width: int, **kwargs: float) -> Anchors:
    return Anchors(nn.Parameter(torch.randn(count, width)), **kwargs)


def test_a_memorys_prototypes_are_the_anchors():
    class Model(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.config = SimpleNamespace(hidden_size=8)
            config = ICMConfig(relate_dim=8, memory_size=size, memory_temperature=0.2)
            self.icm = InformationCompressor(8, config)

    model = Model(5)
    anchors = Anchors.of(model, 5)
    assert anchors.weight is model.icm.memory.prototypes and anchors.temperature == 0.2
    with pytest.raises(ValueError, match=r"has 5 prototypes, the data names 6.*memory_size to 6"):
        Anchors.of(model, 6)
    assert Anchors.of(model, 0).weight.shape == (0, 8), "data that names nothing"
    assert Anchors.of(Model(0), 6).weight.shape == (6, 8)


# The start of `pretrain`.


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
