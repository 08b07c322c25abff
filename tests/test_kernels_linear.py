"""The linear layer for few rows, and the module that calls it without checks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from retrv_kernels import native, ops, registry, selection
from retrv_kernels.linear import PreparedLinear
from retrv_kernels.linear.native import ROWS

requires_native = pytest.mark.skipif(native.find() is None, reason="native kernels not compiled")


@requires_native
@pytest.mark.parametrize("isa", native.isas())
def test_a_row_depends_on_no_other(isa, monkeypatch):
    """Bit for bit, for any batch and number of threads, so greedy results stay the same."""
    monkeypatch.setenv(selection.ISA, isa)
    x, weight, bias = torch.randn(ROWS, 203), torch.randn(391, 203), torch.randn(391)
    alone = torch.cat([ops.linear(row[None], weight, bias) for row in x])
    threads = torch.get_num_threads()
    try:
        for count, rows in ((threads, 1), (1, 5), (threads, 7), (1, 24), (threads, ROWS)):
            torch.set_num_threads(count)
            assert torch.equal(ops.linear(x[-rows:], weight, bias), alone[-rows:])
    finally:
        torch.set_num_threads(threads)


def test_views_that_are_not_contiguous_or_aligned():
    store, x = torch.randn(60, 81), torch.randn(9, 121)
    for weight in (store[::2, ::2][:, :35], store.t()[:20, :35], store[1:21, 1:36]):
        rows = x[1::2, 5:40]
        torch.testing.assert_close(ops.linear(rows, weight), rows @ weight.T)


def test_nan_stays_in_its_row():
    x = torch.randn(6, 40)
    x[3, 39] = torch.nan
    out = ops.linear(x, torch.randn(9, 40))
    assert out.isnan().all(1).tolist() == [False, False, False, True, False, False]


def test_weights_of_another_dtype_than_the_rows():
    x, weight = torch.randn(3, 40), torch.randn(9, 40)
    for dtype in (torch.float16, torch.bfloat16):
        out = ops.linear(x, weight.to(dtype))
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, x @ weight.to(dtype).float().T)


class TestPrepared:
    @pytest.fixture(autouse=True)
    def without_gradients(self):
        with torch.no_grad():
            yield

    @pytest.mark.parametrize("rows", [1, 3, ROWS, ROWS + 1])
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize(
        ("dtype", "bound"),
        [(None, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2), (torch.int8, 3e-2)],
        ids=str,
    )
    def test_equals_the_layer_up_to_rounded_weights(self, rows, bias, dtype, bound, poisoned):
        layer = nn.Linear(150, 70, bias=bias)
        x = torch.randn(2, rows, 150)[:1]
        out, expected = PreparedLinear(layer, dtype=dtype)(x), layer(x)
        assert out.shape == expected.shape
        assert (out - expected).abs().max() <= bound * expected.abs().max()

    @pytest.mark.parametrize("dtype", [None, torch.float16, torch.int8], ids=str)
    def test_follows_weights_that_change(self, dtype):
        layer = nn.Linear(40, 30)
        prepared, x = PreparedLinear(layer, dtype=dtype), torch.randn(3, 40)
        layer.weight.mul_(-2)
        layer.bias.zero_()
        prepared.refresh()
        torch.testing.assert_close(prepared(x), layer(x), rtol=0, atol=0.05)

    @pytest.mark.parametrize("rows", [2, ROWS + 1])
    def test_several_layers_are_concatenated(self, rows, poisoned):
        layers = nn.Linear(40, 30), nn.Linear(40, 7, bias=False), nn.Linear(40, 1)
        x = torch.randn(1, rows, 40)
        expected = torch.cat([layer(x) for layer in layers], -1)
        torch.testing.assert_close(PreparedLinear(*layers)(x), expected)

    def test_takes_rows_that_are_not_contiguous(self):
        layer, x = nn.Linear(40, 30), torch.randn(40, 3).T
        torch.testing.assert_close(PreparedLinear(layer)(x), layer(x))

    def test_the_caller_chooses(self):
        layer, x = nn.Linear(40, 30), torch.randn(3, 40)
        with registry.use("reference"):
            prepared = PreparedLinear(layer)
        assert torch.equal(prepared(x), layer(x))

    def test_refuses_an_unknown_dtype(self):
        with pytest.raises(ValueError, match="float16, bfloat16 or int8, not"):
            PreparedLinear(nn.Linear(4, 3), dtype=torch.int16)


class TestSideBySide:
    """Several layers as one product over parameters in one buffer, as on a GPU."""

    @pytest.fixture(autouse=True)
    def without_gradients(self):
        with registry.use("reference"), torch.no_grad():
            yield

    @pytest.fixture
    def layers(self):
        return nn.Linear(40, 30), nn.Linear(40, 7, bias=False), nn.Linear(40, 1)

    @staticmethod
    def products(prepared, x):
        """The result, and the number of products that it took."""
        with torch.profiler.profile() as seen:
            out = prepared(x)
        return out, sum(event.name == "aten::linear" for event in seen.events())

    @pytest.mark.parametrize("biases", [(1, 0, 1), (0, 0, 0), (1, 1, 1)], ids=str)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_is_one_product(self, biases, dtype, poisoned):
        layers = [
            nn.Linear(40, n, bool(b), dtype=dtype) for n, b in zip((3, 7, 1), biases, strict=True)
        ]
        x = torch.randn(1, 5, 40, dtype=dtype)
        expected = torch.cat([layer(x) for layer in layers], -1)
        out, products = self.products(PreparedLinear(*layers, side_by_side=True), x)
        assert products == 1
        torch.testing.assert_close(out, expected)
        assert self.products(PreparedLinear(*layers), x)[1] == 3  # the default on a CPU

    def test_parameters_stay_what_they_were(self, layers):
        before = [dict(layer.named_parameters()) for layer in layers]
        kept = copy.deepcopy(before)
        PreparedLinear(*layers, side_by_side=True)
        for layer, own, values in zip(layers, before, kept, strict=True):
            assert all(own[name] is one for name, one in layer.named_parameters())
            assert all(torch.equal(own[name], values[name]) for name in own)
            assert layer.weight.is_contiguous() and layer.weight.requires_grad

    def test_follows_training_and_loaded_weights(self, layers):
        prepared, x = PreparedLinear(*layers, side_by_side=True), torch.randn(3, 40)
        before = prepared(x)
        with torch.enable_grad():
            parameters = [one for layer in layers for one in layer.parameters()]
            optimizer = torch.optim.AdamW(parameters, lr=0.1)
            prepared(x).square().sum().backward()
            assert all(one.grad is not None for one in parameters)
            optimizer.step()
        layers[1].load_state_dict({"weight": torch.randn(7, 40)})
        out, products = self.products(prepared, x)
        assert products == 1 and not torch.allclose(out, before)
        torch.testing.assert_close(out, torch.cat([layer(x) for layer in layers], -1))

    @pytest.mark.parametrize("replaced", ["weight", "bias"])
    def test_replaced_parameters_are_read_and_moved_again(self, layers, replaced):
        prepared, x = PreparedLinear(*layers, side_by_side=True), torch.randn(3, 40)
        getattr(layers[2], replaced).data = torch.randn_like(getattr(layers[2], replaced))
        expected = torch.cat([layer(x) for layer in layers], -1)
        out, products = self.products(prepared, x)
        assert products == 3
        torch.testing.assert_close(out, expected)
        prepared.refresh()
        out, products = self.products(prepared, x)
        assert products == 1
        torch.testing.assert_close(out, expected)
        address = layers[0].weight.data_ptr()
        prepared.refresh()
        assert layers[0].weight.data_ptr() == address  # nothing has changed

    def test_two_engines_of_a_model_share_the_buffer(self):
        layers, x = [nn.Linear(40, n) for n in (30, 7, 1)], torch.randn(3, 40)
        first = PreparedLinear(*layers, side_by_side=True)
        second = PreparedLinear(*layers, side_by_side=True)
        assert [self.products(one, x)[1] for one in (first, second)] == [1, 1]
        layers[1].weight.data = torch.randn(7, 40)
        first.refresh()
        second.refresh()
        for one in (first, second):
            out, products = self.products(one, x)
            assert products == 1
            torch.testing.assert_close(out, torch.cat([layer(x) for layer in layers], -1))

    def test_made_in_inference_mode_its_parameters_can_be_trained(self, layers):
        with torch.inference_mode():
            prepared = PreparedLinear(*layers, side_by_side=True)
        with torch.enable_grad():
            prepared(torch.randn(3, 40)).sum().backward()
        assert layers[0].weight.grad is not None

    def test_tied_parameters_stay_tied(self):
        first, second = nn.Linear(40, 30), nn.Linear(40, 30)
        second.weight = first.weight
        prepared, x = PreparedLinear(first, second, side_by_side=True), torch.randn(3, 40)
        table = nn.Embedding(30, 40)
        viewed = nn.Linear(40, 10)
        viewed.weight.data = table.weight.data[:10]
        also = PreparedLinear(nn.Linear(40, 5), viewed, side_by_side=True)
        first.weight.mul_(2)
        table.weight.mul_(2)
        assert second.weight is first.weight
        torch.testing.assert_close(prepared(x), torch.cat([first(x), second(x)], -1))
        torch.testing.assert_close(also(x)[:, 5:], x @ table.weight[:10].T + viewed.bias)

    def test_layers_of_several_dtypes_are_read_one_by_one(self):
        layers = nn.Linear(40, 30), nn.Linear(40, 7).bfloat16()
        prepared, x = PreparedLinear(*layers, side_by_side=True), torch.randn(3, 40)
        out, products = self.products(prepared, x)
        assert products == 2 and out.shape == (3, 37)

    def test_a_copy_is_independent(self, layers):
        prepared, x = PreparedLinear(*layers, side_by_side=True), torch.randn(3, 40)
        twin = copy.deepcopy(prepared)
        before = twin(x)
        layers[0].weight.zero_()
        assert torch.equal(twin(x), before)
        twin.linears[0].weight.zero_()
        out, products = self.products(twin, x)
        assert products == 1
        torch.testing.assert_close(out, prepared(x))

    def test_a_model_is_saved_and_loaded(self, make_model, tmp_path):
        model = make_model()
        layer = model.language_model.layers[0]
        attention, mlp = layer.self_attn, layer.mlp
        kept = {name: value.clone() for name, value in model.state_dict().items()}
        PreparedLinear(attention.q_proj, attention.k_proj, attention.v_proj, side_by_side=True)
        PreparedLinear(mlp.gate_proj, mlp.up_proj, side_by_side=True)
        assert mlp.gate_proj.weight.untyped_storage().nbytes() > mlp.gate_proj.weight.nbytes
        model.save_pretrained(tmp_path)
        found = type(model).from_pretrained(tmp_path).state_dict()
        assert found.keys() == kept.keys()
        for name, value in kept.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=0)
        copied = copy.deepcopy(model)
        assert copied.language_model.layers[0].mlp.gate_proj.weight.untyped_storage().nbytes() == (
            mlp.gate_proj.weight.nbytes
        )


def test_gradients_still_flow():
    layer, x = nn.Linear(40, 30), torch.randn(3, 40)
    PreparedLinear(layer)(x).sum().backward()
    assert layer.weight.grad is not None
