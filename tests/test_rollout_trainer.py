"""The trainer on TRL: it agrees with the engine at every step, and survives what can go wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from retrv_engine import EngineDied
from retrv_r1 import Reranker, Sampling
from retrv_r1.rollout import FormatReward, ResultReward, RetrvRollout
from retrv_r1.rollout.adapters import merged
from retrv_r1.rollout.correction import Correction, DifferenceTooLarge, check_difference

if not find_spec("trl"):
    pytest.skip("needs the extra rl", allow_module_level=True)

from datasets import Dataset
from rerank_doubles import never_ending
from safetensors import SafetensorError
from transformers import GenerationConfig
from trl import GRPOConfig, GRPOTrainer

from retrv_r1.rollout.policy import PolicyBatch, log_probabilities
from retrv_r1.rollout.trainer import RetrvGRPOTrainer

pytest_plugins = ("rollout_fixtures",)
REWARDS = [FormatReward(), ResultReward(truncated="count")]


@pytest.fixture
def trainer(roller, tmp_path) -> Callable[..., RetrvGRPOTrainer]:
    """Two prompts a step, four rollouts each, in two batches."""

    def make(
        made: Any = None, rewards: Any = REWARDS, out: str = "run", own: Any = None, **changes: Any
    ) -> RetrvGRPOTrainer:
        made = made or roller()
        return RetrvGRPOTrainer(made, rewards, arguments(tmp_path / out, **changes), **(own or {}))

    return make


def arguments(out: Path, **changes: Any) -> GRPOConfig:
    values: dict[str, Any] = {
        "output_dir": str(out),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "shuffle_dataset": False,  # TRL orders each epoch anew, and forgets that when it resumes
        "max_steps": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "remove_unused_columns": False,
    }
    return GRPOConfig(**values | changes)


def history(made: RetrvGRPOTrainer) -> list[dict[str, Any]]:
    """What was logged at the steps, but for what the clock decides."""
    rows = [row for row in made.state.log_history if "loss" in row]
    return [
        {k: v for k, v in row.items() if not k.startswith("seconds") and k != "step_time"}
        for row in rows
    ]


def weights(made: RetrvGRPOTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in made.rollout.model.state_dict().items()}


def moved(made: RetrvGRPOTrainer, before: dict[str, torch.Tensor]) -> set[str]:
    after = made.rollout.model.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


@pytest.mark.parametrize("changes", [{}, {"num_iterations": 2}, {"beta": 0.1}], ids=str)
def test_engine_and_policy_agree_while_weights_change(trainer, changes):
    made = trainer(**changes)
    before = weights(made)
    made.train()
    rows = history(made)
    assert len(rows) == 4
    for row in rows:
        assert row["engine_difference/max"] < 1e-5
        assert row["importance/max"] == pytest.approx(1, abs=1e-5)
        assert math.isfinite(row["loss"]) and row["entropy"] >= 0
    assert any(row["grad_norm"] > 0 and row["engine_difference/max"] > 0 for row in rows)
    changed = moved(made, before)
    assert any(name.startswith("icm.") for name in changed)
    assert any(".language_model.layers." in name for name in changed)
    assert not any(".visual." in name for name in changed), "the tower is frozen"
    if "beta" in changes:
        assert rows[0]["kl"] == pytest.approx(0, abs=1e-6) and rows[-1]["kl"] > 1e-6


def test_the_price_of_inspections_rises_and_all_is_logged(trainer):
    made = trainer()
    made.train()
    rows = history(made)
    assert [row["lambda"] for row in rows] == [0.0, 0.25, 0.5, 0.75]
    for row in rows:
        assert {"accuracy", "inspections", "truncated", "empty", "reward"} <= set(row)
        assert {"rewards/format/mean", "rewards/result/mean", "rewards/left_out"} <= set(row)
        assert row["completions/clipped_ratio"] == row["truncated"]
    for row in made.state.log_history[1:4]:
        parts = [row[f"seconds/{p}"] for p in ("rollout", "rewards", "forward", "backward", "sync")]
        assert min(parts) > 0 and sum(parts) < 1.5 * row["step_time"]


def test_a_frozen_compressor_stays(roller, trainer):
    rollout = roller()
    rollout.model.icm.requires_grad_(False)
    made = trainer(rollout)
    before = weights(made)
    made.train()
    changed = moved(made, before)
    assert changed and not any(name.startswith("icm.") for name in changed)


def test_adapters_are_trained_and_sampled_with(roller, trainer):
    from peft import LoraConfig, get_peft_model

    rollout = roller()
    model, before = rollout.model, rollout.model.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    layers = LoraConfig(r=4, target_modules=r".*language_model\.layers\..*_proj", lora_alpha=32)
    adapted = get_peft_model(model, layers)
    made = trainer(rollout, learning_rate=1e-2)
    made.train()
    rows = history(made)
    assert all(row["engine_difference/max"] < 1e-5 for row in rows)
    learnt = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learnt and all("lora_" in name for name in learnt)
    kept = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    for name, value in before.items():
        torch.testing.assert_close(kept[name], value, atol=1e-6, rtol=0, msg=name)
    task = rollout.dataset[0]
    merged = adapted.merge_and_unload()
    assert merged is model and model.state_dict().keys() == before.keys()
    rollout.synchronize()
    rollouts = rollout.sample([task] * 4, range(4))
    batch = PolicyBatch.of(rollouts, rollout.reranker.processor, model.device)
    engine = [one.logprobs[n] for one in rollouts for n in one.replay.numbers]
    torch.testing.assert_close(
        log_probabilities(model, batch)[0], torch.tensor(engine), atol=1e-5, rtol=0
    )
    moved = {n for n, value in model.state_dict().items() if (value - before[n]).abs().max() > 1e-5}
    assert moved and all("_proj" in name for name in moved)


def test_adapters_leave_no_rounding_behind(roller):
    from peft import LoraConfig, get_peft_model

    rollout = roller()
    model = rollout.model
    layers = LoraConfig(r=4, target_modules=r".*language_model\.layers\..*_proj", lora_alpha=32)
    get_peft_model(model, layers)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []
    for _ in range(2):
        with merged(model):
            seen.append(model.language_model.layers[0].mlp.up_proj.base_layer.weight.clone())
    assert torch.equal(*seen)
    assert not torch.equal(seen[0], before[name_of(before)])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    with pytest.raises(ValueError, match="reranker first"):
        RetrvRollout(Reranker(model, rollout.reranker.processor), rollout.dataset)


def name_of(state: dict[str, torch.Tensor]) -> str:
    return next(n for n in state if n.endswith("layers.0.mlp.up_proj.base_layer.weight"))


def test_a_reward_rises(roller, trainer):
    """The policy learns not to inspect if that is all that is rewarded."""

    def blind(rollout: Any, **_: Any) -> list[float]:
        return [float(not one.inspected) for one in rollout]

    made = trainer(rewards=[blind], max_steps=12, learning_rate=3e-3)
    made.train()
    found = [row["reward"] for row in history(made)]
    assert sum(found[-3:]) / 3 > sum(found[:3]) / 3 + 0.25, found


def test_gradients_may_be_checkpointed(trainer):
    curves = []
    for on in (False, True):
        made = trainer(out=f"run{on}", max_steps=2, gradient_checkpointing=on)
        made.train()
        assert made.model.is_gradient_checkpointing == on
        curves.append(history(made))
    for mine, theirs in zip(*curves, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5, rel=1e-4)


def test_an_engine_that_dies_stops_training_and_loses_no_checkpoint(roller, trainer, monkeypatch):
    rollout = roller()
    made = trainer(rollout, save_strategy="steps", save_steps=1)
    generate = rollout.reranker.engine.generate

    def dies(*args: Any) -> Any:
        if made.state.global_step == 2:
            raise EngineDied("the engine has died")
        return generate(*args)

    monkeypatch.setattr(rollout.reranker.engine, "generate", dies)
    with pytest.raises(EngineDied):
        made.train()
    assert not rollout.model.training, "the reranker still ranks"
    monkeypatch.undo()
    assert rollout.sample([rollout.dataset[0]], [0])[0].tokens
    made.train(resume_from_checkpoint=True)
    assert made.state.global_step == 4


def test_an_interrupted_training_leaves_a_reranker_that_ranks(roller, trainer, monkeypatch):
    """Also between the optimizer's step and the engine's."""
    rollout = roller()
    made = trainer(rollout, learning_rate=3e-2)
    task = rollout.dataset[0]
    rollout.reranker.rank(task.query, task.candidates, mode="fast")
    synchronize = rollout.synchronize

    def interrupted() -> None:
        if made.state.global_step == 1:
            monkeypatch.setattr(rollout, "synchronize", synchronize)
            raise KeyboardInterrupt
        synchronize()

    monkeypatch.setattr(rollout, "synchronize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made.train()
    assert not rollout.model.training
    fresh = roller()
    fresh.model.load_state_dict(rollout.model.state_dict())
    fresh.synchronize()
    expected, found = (
        one.reranker.rank(task.query, task.candidates, mode="fast") for one in (fresh, rollout)
    )
    assert [line.score for line in found] == pytest.approx([x.score for x in expected], abs=1e-6)


@pytest.mark.parametrize("written", ["retrv_r1.rollout.trainer.save_model", "torch.save"])
def test_a_full_disk_is_named(trainer, monkeypatch, written):
    def full(*_: Any, **__: Any) -> None:
        if written == "torch.save":
            raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(written, full)
    made = trainer(save_strategy="steps", save_steps=1)
    with pytest.raises(OSError, match=r"checkpoint-1 in .* cannot be written: .*No space left"):
        made.train()


def test_what_old_weights_made_stops_training(roller, trainer, monkeypatch):
    rollout = roller()
    made = trainer(rollout, learning_rate=3e-2, max_steps=6)
    monkeypatch.setattr(rollout, "synchronize", lambda: None)
    with pytest.raises(DifferenceTooLarge, match="weights that the engine does not have yet"):
        made.train()
    assert made.state.global_step > 0, "the first rollouts are of the present weights"


def test_a_policy_that_does_not_see_the_candidates_is_found_out(roller, trainer, monkeypatch):
    rollout = roller()
    made, table = trainer(rollout), rollout.model.row_table
    monkeypatch.setattr(rollout.model, "row_table", lambda *args: torch.zeros_like(table(*args)))
    with pytest.raises(DifferenceTooLarge):
        made.train()
    assert made.state.global_step == 0


def test_a_trained_reranker_ranks(roller, trainer):
    rollout = roller()
    made = trainer(rollout, max_steps=2)
    made.train()
    assert not rollout.model.training
    task = rollout.dataset[0]
    fresh = roller()
    fresh.model.load_state_dict(rollout.model.state_dict())
    fresh.synchronize()
    expected, found = (
        one.reranker.rank(task.query, task.candidates, mode="fast") for one in (fresh, rollout)
    )
    assert [line.index for line in found] == [line.index for line in expected]
    assert [line.score for line in found] == pytest.approx([x.score for x in expected], abs=1e-6)


def test_a_killed_training_resumes_to_the_same_curve(roller, trainer, monkeypatch):
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5}
    whole = trainer(out="whole", **options)
    whole.train()

    class Killed(BaseException):
        pass

    cut = trainer(out="cut", **options)
    score = cut._compute_loss

    def dies(*args: Any) -> Any:
        if cut.state.global_step == 3:
            raise Killed
        return score(*args)

    monkeypatch.setattr(cut, "_compute_loss", dies)
    with pytest.raises(Killed):
        cut.train()
    resumed = trainer(out="cut", **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 5
    for mine, theirs in zip(history(resumed), history(whole), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5, rel=1e-4)
    expected = whole.rollout.model.state_dict()
    for name, value in resumed.rollout.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5, msg=name)


def test_rewards_that_are_no_number_move_nothing(trainer):
    def broken(rollout: Any, **_: Any) -> list[float]:
        return [(math.nan, math.inf, -math.inf)[place % 3] for place in range(len(rollout))]

    made = trainer(rewards=[FormatReward(), broken], weight_decay=0.0, max_steps=2)
    before = weights(made)
    made.train()
    assert not moved(made, before)
    assert all(row["loss"] == 0 and row["rewards/left_out"] == 1 for row in history(made))


def test_one_broken_reward_leaves_the_others_alone(trainer):
    def often_right(rollout: Any, **_: Any) -> list[float]:
        return [math.nan, *(float(place % 2) for place in range(1, len(rollout)))]

    made = trainer(rewards=[often_right], max_steps=2)
    before = weights(made)
    made.train()
    rows = history(made)
    assert all(math.isfinite(row["loss"]) for row in rows) and moved(made, before)
    assert [row["rewards/left_out"] for row in rows] == [1 / 8] * 2
    for value in made.rollout.model.parameters():
        assert value.isfinite().all()


def test_truncated_rollouts_may_be_left_out_of_the_loss(roller, trainer):
    rollout = roller()
    never_ending(rollout.reranker)
    kept = trainer(rollout, max_steps=1, out="kept")
    before = weights(kept)
    trainer(rollout, max_steps=2, weight_decay=0.0, mask_truncated_completions=True).train()
    assert not moved(kept, before)
    kept.train()
    assert history(kept)[0]["truncated"] == 1 and moved(kept, before)


def test_a_step_of_empty_rollouts_changes_nothing(roller, trainer):
    rollout = roller(seconds=1e-9)
    made = trainer(rollout, weight_decay=0.0, max_steps=2)
    before = weights(made)
    made.train()
    assert not moved(made, before)
    assert [row["empty"] for row in history(made)] == [1.0, 1.0]
    rollout.seconds = None
    made.train()
    assert moved(made, before)


def test_a_trainer_that_sees_token_ids_alone_is_refused(roller, tmp_path):
    made = roller()
    made.model.generation_config = GenerationConfig()
    with pytest.warns(UserWarning, match="rollout_func"):
        blind = GRPOTrainer(
            made.model,
            REWARDS,
            arguments(tmp_path),
            train_dataset=Dataset.from_list(made.prompts()),
            processing_class=made.reranker.processor.tokenizer,
            rollout_func=made,
        )
    with pytest.raises(ValueError, match="would not see the candidates"):
        blind.train()


def test_broken_weights_stop_training(roller, trainer):
    rollout = roller()
    made = trainer(rollout)
    with torch.no_grad():
        rollout.model.language_model.norm.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="NaN"):
        made.train()


def test_options_that_do_not_fit_are_named(roller, tmp_path):
    made = roller()
    with pytest.raises(ValueError, match="use_vllm"):
        args = arguments(tmp_path)
        args.use_vllm = True
        RetrvGRPOTrainer(made, REWARDS, args)
    with pytest.raises(ValueError, match="2 tasks are fewer than the 4"):
        args = arguments(tmp_path, num_generations=2)
        RetrvGRPOTrainer(made, REWARDS, args)


def test_weights_are_truncated_by_token_or_by_sequence():
    gap = torch.tensor([[0.5, 0.0, -1.0], [3.0, -2.5, 0.0]])
    token = Correction().weights(gap)
    torch.testing.assert_close(token, gap.exp().clamp(max=2.0))
    sequence = Correction("sequence", cap=1.5).weights(gap)
    expected = torch.tensor([math.exp(-0.5), 1.5])[:, None].expand(2, 3)
    torch.testing.assert_close(sequence, expected)
    assert Correction("none").weights(gap).eq(1).all()
    for wrong in ({"level": "row"}, {"cap": 0.5}):
        with pytest.raises(ValueError, match="must be"):
            Correction(**wrong)


def test_a_difference_has_a_bound_on_its_mean():
    gap = torch.tensor([1e-6, -3e-6, 2e-3])
    found = check_difference(gap, 1e-3)
    assert found["engine_difference/mean"] == pytest.approx(gap.abs().mean().item())
    assert found["engine_difference/max"] == pytest.approx(2e-3)
    assert check_difference(torch.empty(0), 1e-3) == {}
    for broken in (gap + 0.1, torch.tensor([math.nan, 0.0])):
        with pytest.raises(DifferenceTooLarge, match="lower the learning rate"):
            check_difference(broken, 1e-3)


def test_a_loss_is_weighted_by_what_the_engine_said(roller, trainer):
    """An engine that found the tokens half as likely as the policy does counts them double."""
    rollout = roller(Sampling(temperature=0.8, max_reasoning_tokens=12, max_inspections=2))
    losses = []
    for shift in (0.0, math.log(2)):
        own = {"bound": 10.0, "correction": Correction(cap=9)}
        made = trainer(rollout, out=f"run{shift}", own=own)
        roll = made.rollout_func

        def shifted(prompts: Any, trainer: Any, shift: float = shift, roll: Any = roll) -> Any:
            fields = roll(prompts, trainer)
            pairs = zip(fields["logprobs"], fields["env_mask"], strict=True)
            fields["logprobs"] = [
                [p - shift * own for p, own in zip(values, mask, strict=True)]
                for values, mask in pairs
            ]
            return fields

        made.rollout_func = shifted
        made.model.train()
        examples = [{"prompt": number} for number in "00001111"]
        rollout._calls = (-1, 0)
        batch = made._generate_and_score_completions(examples)
        made.current_gradient_accumulation_steps = 1
        batch["advantages"] = torch.linspace(-1, 1, 8)
        losses.append(made._compute_loss(made.model, batch).item())
    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-4) and abs(losses[0]) > 1e-4
