"""relate_tokens in its two forms: they agree, memory is linear, and shapes choose."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from retrv_kernels import native, ops, registry
from retrv_kernels.cases import SMALL, TOLERANCE, error_of, expected_of, named, result_of
from retrv_kernels.relate_tokens import forms, reference
from retrv_kernels.relate_tokens.cases import make

OP = "relate_tokens"
RELATE = [case for case in SMALL if case.op == OP]
VARIANTS = [("reference", None), *(("native", isa) for isa in native.isas())]
# Rows of candidates and queries of a page-sized query picture with 50 candidates.
PAGE = {"3B": (12800, 2048), "7B": (12800, 3584)}


@pytest.fixture(params=["folded", "direct"])
def form(request, monkeypatch) -> str:
    """Makes all queries take one form."""
    monkeypatch.setattr(forms, "is_folded", lambda *_: request.param == "folded")
    return request.param


@pytest.mark.parametrize("case", RELATE, ids=str)
def test_either_form_agrees_with_float64(case, form, poisoned):
    """Also the form that the shapes do not choose."""
    dtype = torch.float32
    arguments = case.arguments(dtype)
    expected = expected_of(OP, arguments)
    for name, isa in VARIANTS:
        with registry.use(name, isa=isa):
            assert error_of(result_of(OP, arguments), expected) <= TOLERANCE[OP][dtype], name


@pytest.mark.parametrize("eps", [1e-3, None])
@pytest.mark.parametrize("name", ["odd_sizes", "empty_sides", "mixed_queries"])
def test_forms_and_their_gradients_are_one_in_float64(name, eps, monkeypatch):
    found = []
    for folded in (True, False):
        monkeypatch.setattr(forms, "is_folded", lambda *_, folded=folded: folded)
        own = named(OP, name).arguments(torch.float64) | {"eps": eps}
        floats = [v for v in own.values() if isinstance(v, Tensor) and v.is_floating_point()]
        for value in floats:
            value.requires_grad_()
        out = ops.relate_tokens(**own)
        out.square().sum().backward()
        found.append([out.detach(), *(value.grad for value in floats)])
    assert len(found[0]) == 6
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_the_direct_form_has_the_gradients_of_finite_differences(monkeypatch):
    monkeypatch.setattr(forms, "is_folded", lambda *_: False)
    case = make("x", [2, 0, 3], [3, 2], 4, 4, (2, 2), pairs=[(0, 1), (2, 0), (1, 1)], eps=1e-3)
    given = case.arguments(torch.float64)
    names = ("relation_keys", "query_keys", "query_values", "output", "folded_queries")
    torch.autograd.gradcheck(
        lambda *values: ops.relate_tokens(**{**given, **dict(zip(names, values, strict=True))}),
        tuple(given[name].requires_grad_() for name in names),
    )


@pytest.mark.parametrize("implementation", ["reference", "native"])
def test_rows_of_no_pair_change_nothing(implementation, form):
    """A query's own rows lie among the keys; here they are NaN."""
    given = make("x", [7, 40, 9], [70], 16, 24, (2, 3), pairs=[(0, 0), (2, 0)]).arguments(
        torch.float32
    )
    with registry.use(implementation):
        expected = ops.relate_tokens(**given)
        given["relation_keys"][7:47] = torch.nan
        assert torch.equal(ops.relate_tokens(**given), expected)


class Largest(TorchDispatchMode):
    """Notes the elements of the largest tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        out = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


@pytest.mark.parametrize("implementation", ["reference", "native"])
@pytest.mark.parametrize("queries", [[2048], [2048, 5]], ids=["one", "two"])
def test_memory_grows_linearly_with_the_query(implementation, queries):
    if implementation == "native" and native.find() is None:
        pytest.skip("the native module is not built")
    made = []
    for scale in (1, 2):
        case = make("x", [6, 5], [scale * asked for asked in queries], 48, 192)
        with torch.no_grad(), registry.use(implementation), Largest() as largest:
            arguments = list(case.arguments(torch.float32).values())
            registry.run(OP, arguments)
        made.append(largest.elements)
    assert made[1] <= 2.1 * made[0]
    assert made[1] <= 4 * 4096 * 192


@torch.no_grad()
def test_tiles_bound_memory_whatever_the_number_of_candidate_rows():
    made = []
    for count in (4, 16):
        case = make("x", [100] * count, [512], 16, 32, (8, 4))
        with registry.use("reference"), Largest() as largest:
            registry.run(OP, list(case.arguments(torch.float32).values()))
        made.append(largest.elements)
    assert made[0] == made[1] < 2**22


@pytest.mark.parametrize("model", PAGE)
def test_short_queries_are_folded_and_page_sized_ones_are_not(model):
    rows, width = PAGE[model]

    def folded(
        asked: int, rows: int = rows, eps: float | None = 1e-6, candidates: int = 50
    ) -> bool:
        return forms.is_folded(rows, 4 * candidates, (asked, 8, width // 8), width, eps)

    chosen = [folded(asked) for asked in (1, 8, 64, 192, 512, 1280, 4096)]
    assert chosen == [True] * 4 + [False] * 3
    # The Gram matrix is made for all candidates: few of them do not pay for it.
    assert folded(192) and not folded(192, rows=20)
    # Without the norm nothing is quadratic, but few rows do not pay for projecting all values, nor
    # do many short candidates, whose tokens are made of them.
    assert folded(4096, eps=None)
    assert not folded(512, rows=16, eps=None, candidates=2)
    assert not folded(1280, rows=800, eps=None, candidates=800)


@pytest.mark.parametrize("implementation", ["reference", "native"])
def test_short_queries_are_folded_in_groups_of_bounded_memory(implementation, monkeypatch):
    case = make("x", [7, 40, 0, 9], [5, 70, 0, 66, 5, 9], 24, 40)
    given = case.arguments(torch.float32)
    with registry.use(implementation):
        together = ops.relate_tokens(**given)
        monkeypatch.setattr(forms, "_GRAMS", 2 * (8 * 9) ** 2)
        torch.testing.assert_close(ops.relate_tokens(**given), together)
    lengths = [5, 70, 0, 66, 5, 9]
    assert forms._by_memory(range(6), lengths, 8, 1e-6) == [[1], [3], [0, 5], [2, 4]]
    assert forms._by_memory(range(6), lengths, 8, None) == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("implementation", ["reference", "native"])
def test_a_long_query_in_a_batch_does_not_copy_keys_for_every_pair(implementation, monkeypatch):
    """All queries meet the same candidates, whose keys are the largest tensor."""
    monkeypatch.setattr(reference, "GATHERED", 2**19)  # the reference computes several at once
    if implementation == "native" and native.find() is None:
        pytest.skip("the native module is not built")
    case = make("x", [64] * 20, [256, *[1] * 40], 64, 64)
    given = case.arguments(torch.float32)
    with torch.no_grad(), registry.use(implementation), Largest() as largest:
        registry.run(OP, list(given.values()))
    assert largest.elements <= 8 * given["relation_keys"].numel()
