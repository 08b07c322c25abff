"""Every GPU implementation against float64, on a GPU."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from retrv_kernels import ops, registry
from retrv_kernels.cases import CASES, SMALL, TOLERANCE, error_of, expected_of, result_of, written
from retrv_kernels.inputs import Case
from retrv_kernels.smoke import to_device

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def runnable() -> list[tuple[str, str]]:
    """Ops and their implementations that this GPU can run."""
    if not torch.cuda.is_available():
        return [(op, one.name) for op, all_of in registry.OPS.items() for one in all_of[:1]]
    return [
        (op, one.name) for op, all_of in registry.OPS.items() for one in all_of if one.check("cuda")
    ]


PAIRS = [
    (case, dtype, name)
    for case in CASES
    for dtype in case.dtypes
    for op, name in runnable()
    if op == case.op
]


@pytest.fixture
def triton():
    with registry.use("triton"):
        yield


@pytest.fixture
def poisoned():
    """Fills `torch.empty` with NaN, so that an element that is never written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(1, device="cuda").isnan()
    yield
    torch.use_deterministic_algorithms(False)


def on_gpu(case: Case, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """A case's arguments on the device."""
    return {key: to_device(value, "cuda") for key, value in case.arguments(dtype).items()}


def typical(op: str) -> dict[str, Any]:
    """Arguments of an op as a step of the engine has them, on the device."""
    names = ("ragged", "text_query", "stores", "decode", "nested", "width_64")
    return on_gpu(next(case for case in CASES if case.op == op and case.name in names))


@pytest.mark.parametrize(("case", "dtype", "name"), PAIRS, ids=str)
def test_agrees_with_float64(case, dtype, name, poisoned, record_property):
    arguments = on_gpu(case, dtype)
    kept = copy.deepcopy(arguments)
    try:
        with registry.use(name):
            found = result_of(case.op, arguments)
    except RuntimeError as refusal:
        if name != "xformers" or "no implementation" not in str(refusal):
            raise
        pytest.skip(str(refusal))
    torch.testing.assert_close(arguments, kept, rtol=0, atol=0, equal_nan=True)
    found = tuple(one.cpu() for one in found) if isinstance(found, tuple) else found.cpu()
    error = error_of(found, expected_of(case.op, case.arguments(dtype)))
    bound = float(TOLERANCE[case.op][dtype])
    record_property("op", case.op)
    record_property("dtype", str(dtype).removeprefix("torch."))
    record_property("error", error)
    record_property("bound", bound)
    assert error <= bound


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_is_a_sound_torch_operator(case):
    """PyTorch's own checks, with the arguments that the public function passes."""
    arguments = {k: v.nan_to_num() if "pages" in k else v for k, v in on_gpu(case).items()}
    operator = getattr(torch.ops.retrv_kernels, case.op).default
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.ops.retrv_kernels, case.op, lambda *given: calls.append(given) or operator(*given)
        )
        getattr(ops, case.op)(**arguments)
    torch.library.opcheck(operator, calls[0])


@pytest.mark.parametrize("op", [op for op, name in runnable() if name == "triton"])
def test_does_not_wait_for_the_device(op, triton):
    """With one query; with several, relate_tokens waits to choose forms, and for lengths."""
    arguments = typical(op)
    getattr(ops, op)(**arguments)
    if op == "splice_features":
        pytest.skip("its spans are copied to the device from pageable memory, which waits")
    torch.cuda.set_sync_debug_mode("error")
    try:
        getattr(ops, op)(**arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "op", [op for op, name in runnable() if name == "triton" and op != "splice_features"]
)
def test_a_graph_replays_it(op, triton):
    """Bit for bit, with results and caches that were overwritten in between."""
    arguments = typical(op)
    expected = result_of(op, arguments)
    changed = [arguments[name] for name in written(op)]
    before = [tensor.clone() for tensor in changed]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles and allocates what it needs
        getattr(ops, op)(**arguments)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = getattr(ops, op)(**arguments)
    results = [*out] if isinstance(out, tuple) else [out]
    for tensor in results:
        tensor.fill_(torch.nan)
    for tensor, values in zip(changed, before, strict=True):
        tensor.copy_(values)
    graph.replay()
    torch.cuda.synchronize()
    expected = [*expected] if isinstance(expected, tuple) else [expected]
    for found, wanted in zip([*results, *changed], expected, strict=True):
        assert torch.equal(found, wanted)
