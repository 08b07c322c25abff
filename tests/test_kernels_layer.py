"""The ops of a decoder layer compute what transformers' layers do."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3MLP,
    Qwen3RMSNorm,
    apply_rotary_pos_emb,
)

from retrv_kernels import ops
from retrv_kernels.cases import error_of, named

LAYER_OPS = ("add_rms_norm", "rotate_to_pages", "silu_product")


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def test_the_norm_equals_that_of_transformers():
    norm, x, delta = Qwen3RMSNorm(40, eps=1e-3), torch.randn(5, 40), torch.randn(5, 40)
    norm.weight.normal_()
    total, normed = ops.add_rms_norm(x, delta, norm.weight, eps=1e-3)
    assert torch.equal(total, x + delta)
    torch.testing.assert_close(normed, norm(x + delta))
    alone, normed = ops.add_rms_norm(x, None, norm.weight, eps=1e-3)
    assert torch.equal(alone, x) and alone.data_ptr() != x.data_ptr()
    torch.testing.assert_close(normed, norm(x))


def test_the_gate_equals_that_of_transformers():
    mlp, x = Qwen3MLP(Qwen3Config(hidden_size=24, intermediate_size=40)), torch.randn(5, 24)
    out = ops.silu_product(torch.cat([mlp.gate_proj(x), mlp.up_proj(x)], -1))
    torch.testing.assert_close(mlp.down_proj(out), mlp(x))


@pytest.mark.parametrize("name", ["norms", "norms_odd_width", "width_80"])
def test_the_rotation_equals_that_of_transformers(name):
    given = named("rotate_to_pages", name).arguments(torch.float32)
    query, key, value = given["qkv"].split(
        [given["heads"], *[given["key_pages"].shape[2]] * 2], dim=1
    )
    cos, sin = given["cos"], given["sin"].clone()
    half = cos.shape[-1] // 2
    sin[..., :half] *= -1
    if given["q_norm"] is not None:
        norm = Qwen3RMSNorm(2 * half, eps=1e-6)
        norm.weight.copy_(given["q_norm"])
        query = norm(query)
        norm.weight.copy_(given["k_norm"])
        key = norm(key)
    query, key = apply_rotary_pos_emb(query[None], key[None], cos[None, :, 0], sin[None, :, 0], 2)
    out = ops.rotate_to_pages(**given)
    torch.testing.assert_close(out, query[0])
    size = given["key_pages"].shape[1]
    where = given["slots"] // size, given["slots"] % size
    torch.testing.assert_close(given["key_pages"][where], key[0])
    assert torch.equal(given["value_pages"][where], value)


def test_padding_rows_may_share_a_slot():
    given = named("rotate_to_pages", "width_64").arguments(torch.float32)
    expected = ops.rotate_to_pages(**given)
    kept = given["key_pages"].clone()
    for name in ("qkv", "cos", "sin"):
        given[name] = torch.cat([given[name], torch.ones(4, *given[name].shape[1:])])
    unused = next(slot for slot in range(48) if slot not in given["slots"])
    given["slots"] = torch.cat([given["slots"], torch.full([4], unused)])
    assert torch.equal(ops.rotate_to_pages(**given)[:3], expected)
    size = kept.shape[1]
    kept[unused // size, unused % size] = given["key_pages"][unused // size, unused % size]
    assert torch.equal(given["key_pages"], kept)


def test_rows_that_are_not_contiguous():
    store = torch.randn(2, 9, 128)
    x, delta = store[:, ::2, ::2]
    weight = torch.randn(128)[::2]
    found = ops.add_rms_norm(x, delta, weight)
    assert error_of(found, ops.add_rms_norm(x.clone(), delta.clone(), weight.clone())) < 1e-6
    gates = store[0].T
    assert error_of(ops.silu_product(gates[:, 1:]), ops.silu_product(gates[:, 1:].clone())) < 1e-6
    given = named("rotate_to_pages", "norms").arguments(torch.float32)
    expected = ops.rotate_to_pages(**given)
    for name in ("qkv", "cos", "slots", "k_norm"):
        strided = torch.stack([given[name], given[name]], -1)[..., 0]
        assert error_of(ops.rotate_to_pages(**{**given, name: strided}), expected) < 1e-6


@pytest.mark.parametrize("op", LAYER_OPS)
def test_it_can_be_called_without_checks(op):
    given = named(op, "width_64").arguments(torch.float32)
    if op == "rotate_to_pages":
        found = ops.unchecked(op, "cpu", torch.float32)(*given.values(), 1e-6)
    else:
        found = ops.unchecked(op, "cpu", torch.float32)(
            *given.values(), *([1e-6] if op == "add_rms_norm" else [])
        )
    expected = getattr(ops, op)(**given)
    assert error_of(found, expected) == 0
