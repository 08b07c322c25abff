"""The compressor against the equations of its docstring, written out one row at a time."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor

from retrv_engine.model import load_weights
from retrv_kernels.cases import error_of
from retrv_r1.model import icm_reference
from retrv_r1.model.config import ICMConfig
from retrv_r1.model.icm import InformationCompressor, _copy_indices
from retrv_r1.model.icm_layers import Attention, Pool

D = 32
CONFIGS = {
    "default": ICMConfig(),
    "one head": ICMConfig(heads_pool=1, heads_relate=1, relate_dim=D),
    "narrow": ICMConfig(heads_pool=2, heads_relate=2, relate_dim=4),
    "relation not normed": ICMConfig(norm_relation=False, relate_dim=8),
    "a pool of its own": ICMConfig(separate_relation_pool=True, relate_dim=8),
    "large epsilon": ICMConfig(norm_eps=0.5, relate_dim=8),
    "memory": ICMConfig(relate_dim=8, memory_size=7, memory_width=5, memory_temperature=0.2),
    "memory of low rank": ICMConfig(
        relate_dim=8, memory_size=7, memory_rank=3, memory_temperature=0.2, agreement=True
    ),
    "agreement": ICMConfig(relate_dim=8, agreement=True),
    "both, a pool of its own": ICMConfig(
        relate_dim=8, memory_size=7, agreement=True, separate_relation_pool=True
    ),
}


def compressor(config: ICMConfig, seed: int = 0) -> InformationCompressor:
    torch.manual_seed(seed)
    icm = InformationCompressor(D, config)
    icm.reset_parameters(0.3, 0.7)
    with torch.no_grad():  # norms whose weights are not all one, as after training
        for norm in icm.modules():
            if isinstance(norm, torch.nn.RMSNorm):
                norm.weight.mul_(torch.rand(D) + 0.5)
    return icm


def rows_of(lengths: list[int], seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return torch.randn(sum(lengths), D, generator=generator), offsets


def naive_norm(row: Tensor, weight: Tensor, eps: float) -> Tensor:
    return row / (row @ row / len(row) + eps).sqrt() * weight


def naive_attention(att: Attention, queries: Tensor, rows: Tensor) -> Tensor:
    w_q, w_k, w_v, w_o = (
        p.weight.double().T for p in (att.q_proj, att.k_proj, att.v_proj, att.o_proj)
    )
    width, value_width = w_q.shape[1] // att.heads, D // att.heads
    out = []
    for query in queries @ w_q:
        heads = []
        for h in range(att.heads):
            part = slice(h * width, (h + 1) * width)
            scores = torch.stack([query[part] @ key[part] / width**0.5 for key in rows @ w_k])
            weights = scores.exp() / scores.exp().sum()
            values = (rows @ w_v)[:, h * value_width : (h + 1) * value_width]
            heads.append(sum(a * value for a, value in zip(weights, values, strict=True)))
        out.append(torch.cat(heads) @ w_o)
    return torch.stack(out)


def naive_token(icm: InformationCompressor, rows: Tensor, query: Tensor | None) -> Tensor:
    """Content token of ``rows [n, d]``, or their relation token to ``query [m, d]``."""
    eps = icm.config.norm_eps

    def norm(norm_module: torch.nn.RMSNorm, values: Tensor) -> Tensor:
        return torch.stack([naive_norm(r, norm_module.weight.double(), eps) for r in values])

    rows, pool, last = norm(icm.row_norm, rows.double()), icm.pool, icm.content_norm
    if query is not None:
        rows = naive_attention(icm.relate, rows, norm(icm.row_norm, query.double()))
        if icm.config.norm_relation:
            rows = norm(icm.relation_norm, rows)
        pool, last = icm.relation_pool or icm.pool, icm.relation_token_norm
    return norm(last, naive_attention(pool.attention, pool.embedding.double()[None], rows))[0]


def naive_content(icm: InformationCompressor, rows: Tensor) -> Tensor:
    """Content token of ``rows [n, d]``, with what memory adds."""
    token = naive_token(icm, rows, None)
    if icm.memory is None:
        return token
    return token + icm.memory.out.weight.double() @ naive_code(icm, token)


def naive_relation(icm: InformationCompressor, rows: Tensor, query: Tensor) -> Tensor:
    """Relation token of ``rows [n, d]`` to ``query [m, d]``, with agreement."""
    token = naive_token(icm, rows, query)
    if icm.agree is None:
        return token
    both = []
    for item in (rows, query):
        content = naive_token(icm, item, None)
        normed = naive_norm(content, torch.ones(D).double(), icm.config.norm_eps)
        both.append(normed if icm.memory is None else torch.cat([normed, naive_code(icm, content)]))
    return token + icm.agree.weight.double() @ (both[0] * both[1])


def naive_code(icm: InformationCompressor, token: Tensor) -> Tensor:
    """Code of what one content token ``[d]`` resembles."""
    memory, config = icm.memory, icm.config
    prototypes, codes = memory.prototypes.double(), memory.codes.double()
    if memory.basis is None:
        prototypes = prototypes / prototypes.norm(dim=-1, keepdim=True)
    else:
        prototypes = prototypes @ memory.basis.double().T
    cosines = torch.stack([token @ p / token.norm() for p in prototypes])
    weights = (cosines / config.memory_temperature).exp()
    read = sum(w * code for w, code in zip(weights / weights.sum(), codes, strict=True))
    return naive_norm(read, torch.ones(len(read)).double(), config.norm_eps)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e-4])
@torch.no_grad()
def test_tokens_are_what_the_equations_say(config, scale):
    icm = compressor(config)
    features, offsets = rows_of([5, 1, 7, 3])
    features *= scale
    items = features.split(offsets.diff().tolist())
    content = icm.content(features, offsets)
    for item, token in zip(items, content, strict=True):
        torch.testing.assert_close(token.double(), naive_content(icm, item), **TOLERANCE)
    pairs = [(0, 3), (1, 3), (2, 1), (3, 2)]  # several queries, one of them one row long
    candidate, query = torch.tensor(pairs).T
    relation = icm.relation(features, offsets, candidate, query)
    for (c, q), token in zip(pairs, relation, strict=True):
        expected = naive_relation(icm, items[c], items[q])
        torch.testing.assert_close(token.double(), expected, **TOLERANCE)


TOLERANCE = {"atol": 2e-5, "rtol": 2e-5}


@pytest.mark.parametrize("config", list(CONFIGS.values())[:6], ids=list(CONFIGS)[:6])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_folded_and_direct_form_are_one(config, dtype, tolerance):
    """Tokens and every gradient: the algebra in float64, the kernels in float32."""
    icm = compressor(config).to(dtype)
    features, offsets = rows_of([4, 1, 9])
    pairs = torch.tensor([0, 1, 2, 1]), torch.tensor([1, 2, 0, 1])
    forms = []
    for pooled, relation in (
        (icm.pooled, icm.relation),
        (partial(icm_reference.pooled, icm), partial(icm_reference.relation, icm)),
    ):
        rows = features.to(dtype).requires_grad_()
        tokens = torch.cat([pooled(rows, offsets), relation(rows, offsets, *pairs)])
        icm.zero_grad()
        (tokens * torch.arange(1, D + 1)).sum().backward()
        forms.append([tokens, rows.grad, *(p.grad for p in icm.parameters())])
    assert error_of(*forms) < tolerance


def test_training_with_either_form_takes_the_same_course(monkeypatch):
    """Loss curves of a small model, folded against direct."""
    curves = []
    for form in ("folded", "direct"):
        icm = compressor(ICMConfig(relate_dim=8))
        if form == "direct":
            monkeypatch.setattr(icm, "pooled", partial(icm_reference.pooled, icm))
            monkeypatch.setattr(icm, "relation", partial(icm_reference.relation, icm))
        features, offsets = rows_of([4, 1, 9, 6])
        goals = torch.randn(2, 4, D, generator=torch.Generator().manual_seed(3))
        optimizer = torch.optim.AdamW(icm.parameters(), 1e-2)
        curve = []
        for _ in range(30):
            relation = icm.relation(features, offsets, torch.arange(4), torch.tensor([1, 2, 3, 0]))
            tokens = torch.stack([icm.content(features, offsets), relation])
            loss = (tokens - goals).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        curves.append(torch.tensor(curve))
    assert curves[0][-1] < 0.8 * curves[0][0]
    torch.testing.assert_close(*curves, rtol=1e-3, atol=0)


@torch.no_grad()
def test_int8_keys_change_relation_tokens_a_little():
    icm = compressor(ICMConfig(relate_dim=8))
    features, offsets = rows_of([4, 1, 9])
    pairs = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])
    exact = icm.relation(features, offsets, *pairs)
    icm.int8_keys = True
    keys, scales = icm.relation_keys(features)
    assert keys.dtype == torch.int8 and scales.shape == (14,)
    rounded = icm.relation(features, offsets, *pairs)
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.02
    with torch.enable_grad():
        assert icm.relation_keys(features)[0].dtype == torch.float32


@pytest.mark.parametrize("config", [{}, {"memory_size": 6, "agreement": True}])
def test_gradients_reach_every_weight_and_no_padding(config):
    icm = compressor(ICMConfig(relate_dim=8, **config))
    features, offsets = rows_of([4, 1, 9])
    features.requires_grad_()
    relation = icm.relation(features, offsets, torch.tensor([0, 1]), torch.tensor([2, 2]))
    (icm.content(features, offsets)[:2].square().sum() + relation.sum()).backward()
    parts = dict(icm.named_parameters())
    assert {"pool.embedding", "pool.attention.k_proj.weight", "relate.q_proj.weight"} <= set(parts)
    assert [name for name, p in parts.items() if p.grad is None or not p.grad.any()] == []
    assert torch.isfinite(features.grad).all() and features.grad.any(1).all()


@torch.no_grad()
def test_tokens_have_the_size_of_the_learned_scale():
    icm = InformationCompressor(D, ICMConfig(relate_dim=8))
    icm.reset_parameters(0.02, 0.05)
    features, offsets = rows_of([4, 7])
    pair = torch.tensor([0, 1]), torch.tensor([1, 0])
    for tokens in (icm.content(features, offsets), icm.relation(features, offsets, *pair)):
        torch.testing.assert_close(
            tokens.square().mean(-1).sqrt(), torch.full((2,), 0.05), rtol=0.05, atol=0
        )


@torch.no_grad()
def test_half_precision_stays_finite_and_close():
    icm = compressor(ICMConfig(relate_dim=8))
    features, offsets = rows_of([4, 1, 9])
    features *= 200
    pair = torch.tensor([0, 2]), torch.tensor([1, 1])
    exact = torch.cat([icm.content(features, offsets), icm.relation(features, offsets, *pair)])
    icm.to(torch.bfloat16)
    low = features.bfloat16()
    rough = torch.cat([icm.content(low, offsets), icm.relation(low, offsets, *pair)]).float()
    assert (rough - exact).square().mean().sqrt() / exact.square().mean().sqrt() < 0.03


def test_no_pairs_give_no_tokens():
    icm, (features, offsets) = compressor(ICMConfig(relate_dim=8)), rows_of([4])
    none = torch.zeros(0, dtype=torch.long)
    assert icm.relation(features, offsets, none, none).shape == (0, D)


@pytest.mark.parametrize("heads, width", [(5, 25), (4, 6)])
def test_heads_that_do_not_divide_the_width_are_refused(heads, width):
    with pytest.raises(ValueError, match=f"{heads} heads"):
        Attention(D, heads, width)


def test_the_relation_shares_its_pool_with_the_content_unless_told_otherwise():
    shared = InformationCompressor(D, ICMConfig(relate_dim=8))
    assert sum(isinstance(m, Pool) for m in shared.modules()) == 1
    assert shared.relate.q_proj.out_features == shared.relate.k_proj.out_features == 8
    assert InformationCompressor(D, ICMConfig(heads_relate=2)).relate.q_proj.out_features == D // 4


@torch.no_grad()
def test_agreement_begins_as_the_likeness_of_tokens_and_codes():
    icm = InformationCompressor(D, ICMConfig(relate_dim=8, memory_size=6, agreement=True))
    icm.reset_parameters(0.3, 0.5)
    features, offsets = rows_of([4, 7, 2])
    pairs = torch.tensor([0, 1]), torch.tensor([2, 2])
    added = icm.relation(features, offsets, *pairs)
    agree, icm.agree = icm.agree, None
    added = added - icm.relation(features, offsets, *pairs)
    pooled = icm.pooled(features, offsets)
    cosine = torch.nn.functional.cosine_similarity
    of_codes = cosine(*icm.contents(features, offsets).code.split([2, 1]))
    likeness = cosine(pooled[:2], pooled[2:]) + of_codes * 0.5
    assert agree.weight[0, 0] == pytest.approx(1.5 / D)
    torch.testing.assert_close(added, (1.5 * likeness[:, None]).expand_as(added))


@torch.no_grad()
def test_what_is_kept_of_weights_follows_them():
    """In place, replaced, loaded, moved: tokens are those of the equations."""
    icm = compressor(ICMConfig(relate_dim=8, memory_size=6, agreement=True))
    other = compressor(ICMConfig(relate_dim=8, memory_size=6, agreement=True), seed=1)
    features, offsets = rows_of([4, 7, 2])
    pairs = torch.tensor([0, 1]), torch.tensor([2, 2])

    def check() -> None:
        parts = features.split(offsets.diff().tolist())
        related = icm.relation(features, offsets, *pairs)
        for (c, q), token in zip([(0, 2), (1, 2)], related, strict=True):
            expected = naive_relation(icm, parts[c], parts[q])
            torch.testing.assert_close(token.double(), expected, **TOLERANCE)

    check()
    icm = copy.deepcopy(icm)
    with torch.inference_mode():
        icm.pool.embedding.mul_(-2)
        icm.memory.prototypes.add_(1)
    check()
    for weight in (icm.pool.attention.k_proj.weight, icm.relation_norm.weight):
        weight.data = torch.randn_like(weight)
        check()
    icm.load_state_dict(other.state_dict())
    check()
    load_weights(icm, {"pool.embedding": torch.randn(D), "memory.prototypes": torch.randn(6, D)})
    check()
    icm.pool.attention.q_proj.weight.data.mul_(3)  # which nothing tells of
    icm.forget()
    check()


def test_folded_weights_are_made_once_and_never_while_gradients_are_on(monkeypatch):
    icm = compressor(ICMConfig(relate_dim=8))
    made = []
    fold = icm.pool._fold
    monkeypatch.setattr(icm.pool, "_fold", lambda norm: (made.append(norm), fold(norm))[1])
    features, offsets = rows_of([4, 7])
    for _ in range(3):
        with torch.no_grad():
            icm.content(features, offsets)
    assert len(made) == 1
    for _ in range(2):
        icm.content(features, offsets).sum().backward()
    assert len(made) == 3 and icm.pool.embedding.grad.any()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.no_grad()
def test_both_tokens_together_are_what_they_are_apart(config):
    icm = compressor(config)
    features, offsets = rows_of([4, 1, 9])
    for pairs in ([(0, 2), (1, 2)], [(0, 2), (1, 0), (2, 1)]):
        pair = torch.tensor(pairs).T
        content, relation = icm.tokens(features, offsets, *pair)
        assert torch.equal(content, icm.content(features, offsets))
        assert torch.equal(relation, icm.relation(features, offsets, *pair))


def test_indices_go_to_a_device_together():
    given = torch.arange(5), torch.tensor([1, 0, 2]), torch.zeros(0, dtype=torch.long)
    assert _copy_indices(given, torch.device("cpu")) is given
    there = _copy_indices(given, torch.device("meta"))
    assert [(x.device.type, len(x)) for x in there] == [("meta", 5), ("meta", 3), ("meta", 0)]
    assert all(x.storage_offset() % 2 == 0 for x in there)
