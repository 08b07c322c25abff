"""The emulated GPU refuses and counts what a GPU would; a decode step stays within its limits."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="an emulated GPU needs Triton, whose launches it takes")

from decode_counts import KINDS, Engine, StepCost, counts_of
from emulated_cuda import emulate
from emulated_tensor import Mismatch, NotCapturable

from retrv_kernels.ops import pool_tokens

# The most that a step may ask of a GPU where no graph is replayed: lower these when it asks less.
# One launch more or less outside the layers is transformers', by its version.
BOUNDS = {
    "1 greedy": StepCost(layer=10, rest=29, copies=1, waits=1),
    "8 greedy": StepCost(layer=10, rest=29, copies=1, waits=1),
    "8 sampled": StepCost(layer=10, rest=56, copies=1, waits=1),
}
REPLAYED = StepCost(layer=0, rest=1, copies=1, waits=1)
# Of Triton, for prompts of 40 rows and 60 decode steps.
COMPILES = 8


@pytest.fixture
def device():
    with emulate() as one:
        yield one


def test_what_is_on_two_devices_is_refused(device):
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    assert there.device.type == "cuda" and (there + 1).device == there.device
    for wrong in (
        lambda: here + there,
        lambda: torch.cat([here, there]),
        lambda: here[there.long()],
        lambda: there.index_fill(0, torch.tensor([1]), 0.0),
        lambda: torch.multinomial(there, 1, generator=torch.Generator()),
        lambda: pool_tokens(there[None], torch.tensor([0, 1]), here[None]),
    ):
        with pytest.raises((Mismatch, ValueError), match=r"[Cc][Pp][Uu]"):
            wrong()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    assert (there * torch.tensor(2.0)).tolist() == [2.0] * 3, "one number goes along"


def test_copies_waits_and_launches_are_counted(device):
    there, mask = torch.arange(4.0, device="cuda"), torch.tensor([True, False] * 2, device="cuda")
    pinned = torch.empty(4, pin_memory=True)
    asked = {
        "launches": [
            lambda: there * 2,
            lambda: there.sort(descending=True),
            lambda: torch.searchsorted(there, there),
            lambda: there.cumsum(0),
            lambda: torch.where(mask, there, there),
            lambda: there.masked_fill_(mask, 1.0),
            lambda: there.__setitem__(mask, 0.0),
        ],
        "copies": [
            lambda: torch.tensor([1, 2], device="cuda"),
            lambda: torch.ones(2).to("cuda", non_blocking=True),
            lambda: there.copy_(pinned, non_blocking=True),
            lambda: there[[0, 1]],
            lambda: there.new_tensor([1.0]),
        ],
        "waits": [
            lambda: there[0].item(),
            lambda: bool(there[0] > 0),
            lambda: there.tolist(),
            lambda: there.cpu(),
            lambda: there[mask],
            lambda: mask.nonzero(),
            lambda: torch.empty(4).copy_(there, non_blocking=True),
            lambda: torch.cuda.synchronize(),
            lambda: torch.cuda.Event().synchronize(),
        ],
        "results": [
            lambda: pinned.copy_(there, non_blocking=True),
            lambda: there.to("cpu", non_blocking=True),
        ],
        "": [
            lambda: there.view(2, 2).T[0],
            lambda: torch.empty(3, device="cuda"),
            lambda: there[1:],
        ],
    }
    for kind, calls in asked.items():
        for number, call in enumerate(calls):
            activity = device.count()
            call()
            for name in {"copies", "waits", "results", kind} - {""}:
                counter = getattr(activity, name)
                assert counter.total() == (name == kind), (kind, number, counter)
                assert all(
                    "test_emulated_device.py" in line for line in counter if kind != "launches"
                )
            assert kind or not activity.launches
    assert there.half()[None].mm(there.half()[:, None]).dtype == torch.float16
    product = torch.mm(there.half()[None], there.half()[:, None], out_dtype=torch.float32)
    assert product.dtype == torch.float32 and product.device.type == "cuda"


def test_a_capture_refuses_what_comes_from_the_host_or_waits(device):
    there, pinned = torch.ones(3, device="cuda"), torch.ones(3, pin_memory=True)
    with device.capturable():
        assert (there.cumsum(0) * 2).device.type == "cuda"
        for wrong in (
            lambda: torch.tensor([1], device="cuda"),
            lambda: there.copy_(pinned, non_blocking=True),
            lambda: pinned.copy_(there, non_blocking=True),
            lambda: int(there.sum()),
            lambda: there[there > 0],
            lambda: there[[0]],
            lambda: torch.cuda.synchronize(),
        ):
            with pytest.raises(NotCapturable, match=r"test_emulated_device\.py"):
                wrong()
    there[[0]].tolist()


def test_a_graph_reads_its_memory_anew(device):
    """As a real one: what was replaced rather than filled is not seen."""
    given, state = torch.ones(3, device="cuda"), torch.zeros(3, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        state[1:] = given[1:] * 2
        result = torch.cat([given, state]).sort().values
    given.copy_(torch.tensor([5.0, 7.0, 6.0], device="cuda"))
    activity = device.count()
    graph.replay()
    assert result.tolist() == [0.0, 5.0, 6.0, 7.0, 12.0, 14.0]
    assert activity.launches == {"graph": 1}
    given = torch.zeros(3, device="cuda")
    graph.replay()
    assert result.tolist() == [0.0, 5.0, 6.0, 7.0, 12.0, 14.0]


@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "replayed"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_decode_step_stays_within_its_books(kind, graphs):
    """A copy or a wait that slips into a step fails here, or a launch into a layer."""
    bound = REPLAYED if graphs else BOUNDS[kind]
    found = counts_of(*KINDS[kind], graphs=graphs)
    assert all(count <= most for count, most in zip(found, bound, strict=True)), found


def test_decoding_compiles_few_kernels(device):
    """Rows, sequences and contexts change while a server runs; compiles take a second each."""
    activity = device.count()
    engine = Engine(device, 1, 3, {}, graphs=False)
    for _ in range(60):
        engine.engine.step()
    engine.check()
    assert 0 < len(activity.compiled) <= COMPILES, sorted(name for name, _ in activity.compiled)
