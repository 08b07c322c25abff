"""Where models run: by name, by default, what is refused with a message that says the fix; and what
they take of a GPU's memory: shares of what is free once the engine has taken its own."""

from __future__ import annotations

import pytest
import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig

from retrv_engine import EngineConfig
from retrv_r1 import DeviceError, Item, memory
from retrv_r1.command import doctor
from retrv_r1.devices import check_weights, device_of, dtype_of
from retrv_r1.model.checkpoint import saved_dtype
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.rerank.feature_encoder import FeatureEncoder
from retrv_r1.rerank.reranker import Reranker

CPU, GPU, GIB = torch.device("cpu"), torch.device("cuda", 0), 2**30
INSPECTED = 50 * 1280 * 3584 * 2  # fifty pictures of 1,280 rows at 7B in half precision: 459 MB


@pytest.fixture
def gpus(monkeypatch):
    """Says how many GPUs there are."""

    def there_are(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return there_are


def test_the_first_gpu_is_the_default_where_there_is_one(gpus):
    gpus(0)
    assert device_of() == device_of("cpu") == CPU
    gpus(2)
    assert device_of() == device_of("cuda") == device_of(torch.device("cuda")) == GPU
    assert device_of("cuda:1") == torch.device("cuda", 1) and device_of("cpu") == CPU


@pytest.mark.parametrize(
    "count, name, message",
    [
        (0, "cuda", "no device cuda: PyTorch can use no GPU here; use cpu"),
        (1, "cuda:1", "no device cuda:1: GPUs here: 1; use cpu"),
        (1, "mps", "cpu or cuda, not on mps"),
        (1, "gpu", "no device is called 'gpu'"),
        (1, "", "no device is called ''"),
    ],
)
def test_a_device_that_is_not_there_is_refused(gpus, count, name, message):
    gpus(count)
    with pytest.raises(DeviceError, match=message):
        device_of(name)


def test_weights_are_float32_on_a_cpu_and_the_checkpoints_own_on_a_gpu():
    assert dtype_of(None, CPU) == torch.float32 and dtype_of(None, GPU) is None
    for device in (CPU, GPU):
        assert dtype_of("float16", device) == dtype_of(torch.float16, device) == torch.float16
    for other in ("int8", "float", torch.int64):
        with pytest.raises(
            DeviceError, match="dtype must be one of float32, float16, bfloat16, float64, not"
        ):
            dtype_of(other, CPU)
    assert dtype_of("float64", CPU) == torch.float64
    with pytest.raises(DeviceError, match="float64 runs on cpu only, not on cuda:0"):
        dtype_of(torch.float64, GPU)


def test_a_checkpoint_says_how_it_is_read(make_model, tmp_path):
    make_model().to(torch.bfloat16).save_pretrained(tmp_path)
    assert saved_dtype(tmp_path) == torch.bfloat16
    loaded = RetrvR1ForConditionalGeneration.from_pretrained(tmp_path, dtype="auto")
    assert loaded.dtype == torch.bfloat16


def test_weights_are_rounded_for_cpus_alone(gpus):
    check_weights("int8", CPU)
    check_weights("model", GPU)
    with pytest.raises(DeviceError, match="int8 weights need a CPU, not cuda:0: use"):
        check_weights("int8", GPU)
    gpus(1)
    with pytest.raises(DeviceError, match="float16 weights need a CPU"):
        Reranker.from_pretrained("tiny", config=EngineConfig(weights="float16"))


def test_the_doctor_says_what_would_be_used(gpus, monkeypatch):
    monkeypatch.setattr(doctor, "_gpus", list)
    monkeypatch.setattr(doctor, "_kernels", lambda _: {"native": None, "isas": [], "ops": []})
    gpus(0)
    assert doctor.report()["default"] == {"device": "cpu", "dtype": "float32"}
    gpus(1)
    assert doctor.report()["default"] == {"device": "cuda:0", "dtype": "the checkpoint's"}


# Memory.


@pytest.fixture
def free(monkeypatch):
    """Says how much of a GPU is free, and how much of it PyTorch holds without use."""

    def there_is(free: float, held: float = 0) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(free - held), 80 * GIB))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: int(GIB + held))
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: GIB)

    return there_is


class Tower:
    """The sizes of Qwen2.5-VL's."""

    config = Qwen2_5_VLVisionConfig(hidden_size=1280, intermediate_size=3420)
    dtype = torch.bfloat16


@pytest.mark.parametrize("held", [0, GIB // 8])
def test_features_get_a_quarter_and_room_for_fifty_pictures_where_it_is_there(free, held):
    free(12 * GIB, held)
    assert memory.feature_bytes(GPU) == 3 * GIB
    free(GIB, held)
    assert INSPECTED < memory.feature_bytes(GPU) == GIB // 2
    free(GIB / 2, held)
    assert memory.feature_bytes(GPU) == GIB // 4
    assert memory.feature_bytes(CPU) == 256 * 2**20


def test_a_batch_of_the_tower_takes_a_quarter_at_most(free):
    free(12 * GIB)
    assert memory.tower_rows_at_once(Tower, GPU) == 2**14
    free(3 * GIB)
    rows = memory.tower_rows_at_once(Tower, GPU)
    assert 2**11 < rows < 2**14
    free(6 * GIB)
    assert memory.tower_rows_at_once(Tower, GPU) == pytest.approx(2 * rows, abs=1)
    free(0)
    assert memory.tower_rows_at_once(Tower, GPU) == 2**11
    assert memory.tower_rows_at_once(Tower, CPU) == 2**14


def test_the_encoder_asks_at_its_first_request_and_once(model, processor, monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "feature_bytes", lambda device: asked.append(device) or 10**6)
    monkeypatch.setattr(memory, "tower_rows_at_once", lambda _, device: asked.append(device) or 64)
    encoder = FeatureEncoder(model, processor)
    assert asked == []
    for text in ("a", "b"):
        encoder.encode([Item(text=text)])
    assert asked == [model.device] * 2
    assert (encoder.capacity_bytes, encoder.batch_rows) == (10**6, 64)
    given = FeatureEncoder(model, processor, 0, 1)
    given.encode([Item(text="a")])
    assert (given.capacity_bytes, given.batch_rows) == (0, 1) and len(asked) == 2
