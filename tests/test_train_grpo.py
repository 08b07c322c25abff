"""The stage grpo from its YAML file: what it learns from, what it writes, and how it resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import small_stages as stages
import torch
from small_stages import LOOP, Killed

from retrv_r1.command.recipe import CONFIGS
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.rerank.reranker import Reranker
from retrv_r1.rollout import Task
from retrv_r1.rollout.correction import Correction
from retrv_r1.train import run
from retrv_r1.train.checkpoints import STATE, newest_checkpoint
from retrv_r1.train.config import ConfigError, read_config
from retrv_r1.train.grpo import GRPOStage
from retrv_r1.train.machine import MachineError
from retrv_r1.train.stage import build_stage
from retrv_r1.types import RetrvError

pytest_plugins = ("training_fixtures",)
pytestmark = [
    stages.pytestmark,
    pytest.mark.skipif(not find_spec("trl"), reason="needs the extra rl"),
]
config, folder, trained = stages.config, stages.folder, stages.trained
undrawn = stages.undrawn
SMALL = {
    "prompts": 2,
    "group": 4,
    "batch": 4,
    "sizes": [3, 4],
    "max_reasoning_tokens": 6,
    "truncated": "count",
    "validation": 3,
}


@pytest.fixture
def file(config, trained, folder, tmp_path) -> Callable[..., Path]:
    """A small configuration that starts from a finished sft."""

    def write(loop: Any = None, **options: Any) -> Path:
        trained("sft")
        init = {"model": str(folder / "sft/final"), "embed": str(folder / "words/final")}
        changes: dict[str, Any] = {"init": init, "out": str(tmp_path / "grpo")}
        changes["loop"] = LOOP | {"steps": 4} | (loop or {})
        return config("sft", stage=SMALL | options, **changes)

    return write


@pytest.fixture
def build(file) -> Callable[..., GRPOStage]:
    def make(**options: Any) -> GRPOStage:
        stage: Any = build_stage(read_config("grpo", file(**options)))
        return stage

    return make


def curve(out: Path) -> list[dict[str, Any]]:
    """The lines of a curve, but for what the clock decides."""
    rows = map(json.loads, (out / "grpo.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in row.items() if not k.startswith("seconds") and k != "rollouts_per_s"}
        for row in rows
    ]


def test_a_run_writes_a_model_that_ranks_with_curves_and_record(file, trained, tmp_path):
    final = run("grpo", file(), dtype="float32")
    assert final == tmp_path / "grpo/final"
    rows = curve(final.parent)
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert [row["lambda"] for row in steps] == [0.0, 0.25, 0.5, 0.75]
    for row in steps:
        assert {"reward", "reward_format", "reward_result", "accuracy", "inspections"} <= set(row)
        assert row["engine_difference_max"] < 1e-5
    assert [row["step"] for row in rows if "val_accuracy" in row] == [2, 4]
    assert (final.parent / "grpo.png").is_file()
    record = json.loads((final.parent / "record.json").read_text())
    assert record["stage"] == "grpo" and record["spent"]["samples_per_second"] > 0
    with Reranker.from_pretrained(final, device="cpu") as reranker:
        assert len(reranker.rank("a red apple", ["a blue bird", "an old house"])) == 2
    assert (final / "embedder/config.json").is_file()
    before, after = (
        RetrvR1ForConditionalGeneration.from_pretrained(path).state_dict()
        for path in (trained("sft"), final)
    )
    assert before.keys() == after.keys()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert any(name.startswith("icm.") for name in moved)
    assert any(".language_model." in name for name in moved)
    assert not any(".visual." in name for name in moved)


def test_a_killed_run_resumes_to_the_same_curve(file, build, tmp_path, monkeypatch):
    whole = run("grpo", file(), tmp_path / "whole", dtype="float32")
    calls = []

    class Dies(GRPOStage):
        def rewards(self) -> Any:
            found, weights = super().rewards()
            score = found[0]

            def dying(**values: Any) -> Any:
                calls.append(values)
                if len(calls) == 4:
                    raise Killed
                return score(**values)

            return [dying, *found[1:]], weights

    monkeypatch.setattr("retrv_r1.train.grpo.GRPOStage", Dies)
    with pytest.raises(Killed):
        run("grpo", file(), tmp_path / "cut", dtype="float32")
    monkeypatch.undo()
    assert [row["step"] for row in curve(tmp_path / "cut") if "loss" in row] == [1, 2, 3]
    (tmp_path / "cut/checkpoint-3").mkdir()  # killed while it was written
    (tmp_path / "cut/checkpoint-3/model.safetensors").write_bytes(b"")
    cut = run("grpo", file(), tmp_path / "cut", dtype="float32")
    mine = [row for row in curve(cut.parent) if row["step"] > 2]
    theirs = [row for row in curve(whole.parent) if row["step"] > 2]
    for one, other in zip(mine, theirs, strict=True):
        assert one == pytest.approx(other, abs=1e-5, rel=1e-4)
    expected = RetrvR1ForConditionalGeneration.from_pretrained(whole).state_dict()
    for name, value in RetrvR1ForConditionalGeneration.from_pretrained(cut).state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5, msg=name)


def test_the_tasks_of_a_step_are_a_function_of_the_step_alone(build):
    def seen(stage: GRPOStage, number: int) -> Any:
        task = stage.tasks[number]
        pictures = [b"" if i.image is None else i.image.tobytes() for i in task.items]
        return [item.text for item in task.items], pictures, task.answer, task.instruction

    stage, other = build(), build()
    assert len(stage.tasks) == 8
    found = [seen(stage, number) for number in range(8)]
    assert len({str(one) for one in found}) > 4
    for number in (7, 0, 4):
        assert seen(other, number) == found[number]
    for number in range(8):
        task = stage.tasks[number]
        assert len(task.candidates) in (3, 4) and task.answer is not None


def test_there_are_as_many_tasks_as_steps_take(build):
    tasks = build().tasks
    assert len(list(tasks)) == len(tasks) == 8
    for number in (-1, 8):
        with pytest.raises(IndexError):
            tasks[number]


def test_a_part_of_a_checkpoint_is_passed_over(tmp_path):
    assert newest_checkpoint(tmp_path) == (None, 0)
    for step in (2, 4, 10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-2" / STATE).write_text('{"global_step": 2}')
    (tmp_path / "checkpoint-4" / STATE).write_text('{"global_step": 4}')
    (tmp_path / "checkpoint-10" / STATE).write_text('{"global_st')
    assert newest_checkpoint(tmp_path) == (tmp_path / "checkpoint-4", 4)


def test_a_compressor_may_be_frozen(build):
    stage = build(compressor=False)
    learning = {name for name, p in stage.model.named_parameters() if p.requires_grad}
    assert learning and not any(name.startswith("icm.") for name in learning)
    whole = {name for name, p in build().model.named_parameters() if p.requires_grad}
    assert whole > learning and all(name.startswith("icm.") for name in whole - learning)


def test_options_reach_the_trainer(file, tmp_path, monkeypatch):
    class Taken(Exception):
        pass

    def take(*given: Any, **own: Any) -> None:
        raise Taken(*given, own)

    monkeypatch.setattr("retrv_r1.rollout.trainer.RetrvGRPOTrainer", take)
    options = {"kl": 0.1, "loss": "dr_grpo", "epsilon": 0.3, "truncated": "mask", "seconds": 5.0}
    options |= {"format_weight": 0.25, "margin_weight": 0.5, "bound": 0.5, "price": "cosine"}
    options |= {"correction": "sequence", "cap": 3.0, "temperature": 0.7, "top_p": 0.8}
    with pytest.raises(Taken) as taken:
        run("grpo", file(**options), dtype="float32")
    rollout, rewards, found, own = taken.value.args
    assert (found.beta, found.loss_type, found.epsilon) == (0.1, "dr_grpo", 0.3)
    assert found.mask_truncated_completions and not found.shuffle_dataset
    assert found.reward_weights == [0.25, 1.0, 0.5]
    assert [reward.__name__ for reward in rewards] == ["format", "result", "margin"]
    assert (rewards[1].growth, rewards[1].truncated) == ("cosine", "zero")
    assert (found.num_generations, found.generation_batch_size) == (4, 8)
    assert own == {"correction": Correction("sequence", 3.0), "bound": 0.5}
    sampling = rollout.sampling
    assert (sampling.temperature, sampling.top_p, rollout.seconds) == (0.7, 0.8, 5.0)
    assert (sampling.max_reasoning_tokens, sampling.max_inspections) == (6, 3)


def test_validation_is_greedy_and_of_held_out_lists(build, monkeypatch):
    stage, seen = build(), []
    sample = stage.rollout.sample

    def sampled(tasks: Any, seeds: Any) -> Any:
        seen.extend(tasks)
        assert seeds is None
        return sample(tasks, seeds)

    monkeypatch.setattr(stage.rollout, "sample", sampled)
    first, again = stage.validate(), stage.validate()
    assert first == again and first.keys() >= {"val_accuracy", "val_inspections"}
    own = [Task("a bird", ["a bird", "a house"], 0), Task("a house", ["a bird", "a house"], 1)]
    stage._held_out = SimpleNamespace(of_step=lambda _: own)
    seen.clear()
    stage.validate()
    assert seen == own * 2, "three lists take two steps"


def test_adapters_end_up_in_the_weights(file, trained, tmp_path):
    final = run("grpo", file(lora=2, compressor=False, loop={"steps": 2}), dtype="float32")
    before, after = (
        RetrvR1ForConditionalGeneration.from_pretrained(path).state_dict()
        for path in (trained("sft"), final)
    )
    assert before.keys() == after.keys()
    moved = {n for n, value in before.items() if (value - after[n]).abs().max() > 1e-5}
    assert moved and all(".language_model.layers." in n and "_proj" in n for n in moved)
    assert all(row["engine_difference_max"] < 1e-5 for row in curve(final.parent) if "loss" in row)


def test_a_reward_without_a_weight_is_left_out(build):
    def names(**options: Any) -> list[str]:
        return [reward.__name__ for reward in build(**options).rewards()[0]]

    assert names() == ["format", "result"]
    assert names(format_weight=0.0, margin_weight=0.1) == ["result", "margin"]


@pytest.mark.parametrize(
    ("options", "loop", "why"),
    [
        ({"batch": 3}, {}, "batch 3 does not divide 8 rollouts"),
        ({"price": "cubic"}, {}, "growth must be one of"),
        ({"group": 1}, {}, "group must be at least 2"),
        ({"kl": -0.1}, {}, "kl must be at least 0"),
        ({"sizes": []}, {}, "sizes must be"),
        ({"format_weight": 0.0, "result_weight": 0.0}, {}, "no reward has a weight"),
        ({"correction": "row"}, {}, "level must be one of"),
        ({"temperature": 0.0}, {}, "greedy rollouts"),
        ({}, {"processes": 2}, "loop.processes"),
        ({}, {"rates": {"icm": 0.1}}, "loop.rates"),
    ],
)
def test_options_that_do_not_fit_are_named(file, options, loop, why):
    with pytest.raises(ConfigError, match=why):
        run("grpo", file(loop=loop, **options), dtype="float32")


def test_a_time_limit_is_refused(file):
    with pytest.raises(MachineError, match="leave --minutes out"):
        run("grpo", file(), dtype="float32", minutes=1.0)


def test_without_trl_the_message_says_what_to_install(build, monkeypatch):
    monkeypatch.setattr("retrv_r1.train.grpo.find_spec", lambda _: None)
    with pytest.raises(RetrvError, match=r"\[rl\]"):
        build()


def test_the_file_of_tiny_starts_from_its_sft():
    found = read_config("grpo", CONFIGS / "grpo.yaml")
    assert found.out == Path("runs/tiny/grpo")
    assert found.init["model"] == Path("runs/tiny/sft/final")
    assert found.stage.prompts * found.stage.group % found.stage.batch == 0
