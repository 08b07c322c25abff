"""Training on a GPU, in halves, with workers, by the clock."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
import small_stages as stages
import torch
from small_stages import curve

from retrv_r1.model.modeling import PackedItems
from retrv_r1.train import run
from retrv_r1.train.config import LoopConfig, read_config
from retrv_r1.train.loop import fit
from retrv_r1.train.machine import Machine
from retrv_r1.train.record import commit_here
from retrv_r1.train.schedule import CHECKPOINTS, Schedule, ScheduleCallback, cosine
from retrv_r1.train.stage import build_stage
from retrv_r1.train.tensors import map_tensors, to_arrays, to_device, to_tensors

pytest_plugins = ["training_fixtures"]

pytestmark = stages.pytestmark
build, config, folder, trained = stages.build, stages.config, stages.folder, stages.trained
undrawn = stages.undrawn
NAMES = list(stages.OPTIONS)


@pytest.mark.parametrize("name", NAMES)
def test_workers_change_nothing(build, name, tmp_path):
    settings = LoopConfig(**stages.LOOP)
    fit(build(name), settings, tmp_path / "alone", resume=False)
    machine = Machine(workers=2)
    fit(build(name), settings, tmp_path / "helped", resume=False, machine=machine)
    alone, helped = (curve(tmp_path / run / f"{name}.jsonl") for run in ("alone", "helped"))
    assert alone == helped and len(alone) > stages.STEPS - 1


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_travels_between_processes_unchanged(build, name):
    batch = build(name).batch(2)
    assert stages.same(to_tensors(to_arrays(batch)), batch)
    there, offsets, others = to_device(batch, "meta"), [], []
    map_tensors(
        there,
        lambda x: (offsets if isinstance(x, PackedItems) else others).append(x),
        (PackedItems,),
    )
    assert all(one.ids.is_meta and not one.cu_seqlens.is_meta for one in offsets)
    assert others and all(tensor.is_meta for tensor in others), "every tensor is moved"


@pytest.mark.parametrize("name", NAMES)
def test_halves_stay_inside_the_large_parts(config, build, name):
    exact = build(name)
    settings = read_config(name, config(name))
    rough = build_stage(settings, Machine(dtype=torch.bfloat16))
    rough.model.load_state_dict(exact.model.state_dict())  # reading starts from rounded vectors
    batch = exact.batch(1)  # rounded vectors may draw other negatives
    expected, exactly = exact.loss(batch)
    found, roughly = rough.loss(batch)
    assert found.dtype == torch.float32 and roughly != exactly
    picture = torch.rand(1, 3, 16, 16)
    rows, exact_rows = (stage.model.visual.rows(picture) for stage in (rough, exact))
    assert rows.dtype == torch.float32 and not torch.equal(rows, exact_rows)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    found.backward()
    grads = [p.grad for p in rough.model.parameters() if p.grad is not None]
    assert grads and all(g.dtype == torch.float32 and g.isfinite().all() for g in grads)


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_on_an_emulated_gpu_is_the_cpus(build, name):
    """Mixed devices raise there. Forward alone; no gradients on a GPU were seen."""
    from emulated_cuda import emulate

    stage = build(name)
    stage.model.eval()
    with torch.no_grad():
        expected = [float(stage.loss(stage.batch(step))[0]) for step in range(3)]
        metrics = stage.validate()
    with torch.inference_mode(), emulate() as device:
        device.move(stage.model)
        if hasattr(stage, "entries"):
            device.move(stage.entries.model)
        corpora = [getattr(stage, "corpus", None)]
        if name in ("embed", "words"):
            corpora = [stage.train.corpus, stage.val.corpus]
        if validation := getattr(stage, "validation", None):
            corpora.append(validation.corpus)
        for corpus in filter(None, corpora):
            corpus.bank.to(torch.device("cuda"))
        if hasattr(stage, "bank"):
            stage.bank.rows = device.put(stage.bank.rows)
        batches = [to_device(stage.batch(step), "cuda") for step in range(3)]
        found = [float(stage.loss(batch)[0]) for batch in batches]
        assert stage.validate() == pytest.approx(metrics)
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_a_training_step_on_a_gpu_has_the_cpus_loss(build, config, name, tmp_path, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    settings = LoopConfig(**stages.LOOP | {"steps": 3, "save_every": 3})
    here, there = build(name), read_config(name, config(name))
    fit(here, settings, tmp_path / "cpu", resume=False)
    for dtype, near in (("float32", 2e-3), ("bfloat16", 5e-2)):
        machine = Machine.of("cuda", dtype, workers=2)
        fit(build_stage(there, machine), settings, tmp_path / dtype, resume=False, machine=machine)
        ours, theirs = (curve(tmp_path / run / f"{name}.jsonl") for run in ("cpu", dtype))
        losses = [[row["loss"] for row in rows if "loss" in row] for rows in (ours, theirs)]
        assert losses[1] == pytest.approx(losses[0], rel=near)


def test_a_run_by_the_clock_ends_in_time_with_its_whole_schedule(config, trained, folder):
    trained("words")
    out, limit = folder / "by-the-clock", 10.0
    planned = stages.LOOP | {"steps": 1000, "save_every": 1000}
    started = time.monotonic()
    final = run("read", config("read", loop=planned), out=out, minutes=limit / 60)
    assert time.monotonic() - started < 2 * limit
    assert (final / "model.safetensors").is_file()
    rows = curve(out / "read.jsonl")
    rates = [row["lr"] for row in rows if "loss" in row]
    assert max(rates) > 0.9 * planned["learning_rate"] and rates[-1] < 0.15 * max(rates)
    validated = [row["step"] for row in rows if "val_answer_r1" in row]
    assert validated[0] == 0 and len(validated) in (2, 1 + CHECKPOINTS)
    record = json.loads((out / "record.json").read_text())
    assert record["steps"] == rows[-1]["step"] == validated[-1] != 1000
    seconds = record["spent"]["seconds"]
    assert seconds["all"] > seconds["forward and backward"] > seconds["of these forward"] > 0
    assert (out / f"checkpoint-{validated[-1]}" / "model.safetensors").is_file()


def test_a_schedule_by_the_clock_reaches_all_of_the_curriculum(build, monkeypatch):
    stage, clock = build("read"), [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    stage.schedule = schedule = Schedule(stages.STEPS, 60.0)
    clock[0] += 10  # loading
    schedule.begin(validate_at_end=False)
    hardness, draw = [], stage.sampler.draw

    def noting(rng: Any, count: int, size: int, hard: float, **options: Any) -> Any:
        hardness.append(hard)
        return draw(rng, count, size, hard, **options)

    stage.sampler.draw = noting
    for _ in range(9):
        stage.batch(4)
        clock[0] += 6
        schedule.tick()
    assert hardness[0] == 0 and hardness[-1] == stage.config.hard
    assert hardness == sorted(hardness)
    assert schedule.position == stages.STEPS
    clock[0] -= 30
    schedule.tick()
    assert schedule.position == stages.STEPS, "it never goes back"


def test_a_stage_that_loads_for_most_of_its_time_says_so(monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    for loading, told in ((4.0, ""), (7.0, "loading took 70% of 10 s")):
        callback = ScheduleCallback(Schedule(100, 10.0), lambda _: None)
        clock[0] += loading
        callback.on_train_begin(None, SimpleNamespace(global_step=0), None)
        said = capsys.readouterr().err
        assert said.startswith(told) and bool(said) == bool(told)


def test_the_rate_is_that_of_transformers():
    from transformers import get_scheduler

    parameter = torch.nn.Parameter(torch.zeros(1))
    theirs = get_scheduler(
        "cosine_with_min_lr",
        torch.optim.SGD([parameter], lr=1.0),
        num_warmup_steps=5,
        num_training_steps=40,
        scheduler_specific_kwargs={"min_lr_rate": 0.05},
    )
    for step in range(41):
        assert cosine(step, 40, 5) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        theirs.optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "mps"}, "cpu or cuda"),
        ({"dtype": "float16"}, "float32, bfloat16"),
        ({"workers": -1}, "at least 0"),
    ],
)
def test_machines_that_there_are_not(options, message, monkeypatch):
    with pytest.raises(ValueError, match=message):
        Machine.of(**options)
    for fast, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda fast=fast: fast)
        assert Machine.of("cpu") == Machine(dtype=dtype), "a CPU has no workers"


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert commit_here() is None
