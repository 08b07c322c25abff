"""Where models run: by name, by default, and what is refused with a message that says the fix."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from retrv_engine import EngineConfig
from retrv_r1 import DeviceError
from retrv_r1.command import doctor
from retrv_r1.command.cli import app
from retrv_r1.devices import check_weights, device_of, dtype_of
from retrv_r1.model.checkpoint import saved_dtype
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.rerank.reranker import Reranker

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


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


def test_commands_refuse_in_one_line(tmp_path):
    (tmp_path / "texts.txt").write_text("red\nblue\n")
    arguments = ["rerank", "red", str(tmp_path / "texts.txt"), "--device", "cuda:77"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2 and done.stdout == ""
    assert done.stderr.startswith("error: no device cuda:77: ")
    assert len(done.stderr.splitlines()) == 1


def test_rankings_say_what_made_them(tmp_path):
    (tmp_path / "texts.txt").write_text("a red apple\nblue\n")
    arguments = ["rerank", "red", str(tmp_path / "texts.txt"), "--json", "--mode", "fast"]
    done = CliRunner().invoke(app, [*arguments, "--device", "cpu", "--dtype", "bfloat16"])
    made_by = json.loads(done.stdout)["retrv"]
    assert (made_by["device"], made_by["dtype"]) == ("cpu", "bfloat16")
