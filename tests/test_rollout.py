"""Rollouts: the trainer reads the rows, choices and log-probabilities that the engine had."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rerank_doubles import never_ending
from torch import Tensor

from retrv_r1 import EngineConfig, ItemError, Reranker, Sampling
from retrv_r1.rollout import (
    FormatReward,
    MarginReward,
    ResultReward,
    RetrvRollout,
    Rollout,
    Task,
)
from retrv_r1.rollout.policy import PolicyBatch, log_probabilities, spread
from retrv_r1.rollout.replay import Replay
from retrv_r1.rollout.rewards import curriculum
from retrv_r1.rollout.sampling import as_fields
from retrv_r1.rollout.task import Group

pytest_plugins = ("rollout_fixtures",)
NUCLEUS = Sampling(temperature=0.8, top_p=0.9, max_reasoning_tokens=12, max_inspections=2)


def sampled(roller: Any, count: int = 4) -> list[Rollout]:
    """Groups of rollouts of both tasks."""
    tasks = [task for task in roller.dataset for _ in range(count)]
    return roller.sample(tasks, list(range(len(tasks))))


def scored(roller: Any, rollouts: list[Rollout]) -> Tensor:
    """The trainer's log-probabilities of all sampled tokens."""
    batch = PolicyBatch.of(rollouts, roller.reranker.processor, roller.model.device)
    return log_probabilities(roller.model, batch)[0]


def engine_says(rollouts: list[Rollout]) -> Tensor:
    replays = [(one.logprobs, one.replay) for one in rollouts if one.replay]
    return torch.tensor([values[n] for values, replay in replays for n in replay.numbers])


@pytest.mark.parametrize("engine", ["local", "plain"])
@pytest.mark.parametrize(
    "sampling",
    [NUCLEUS, replace(NUCLEUS, temperature=1.3, top_p=1.0), replace(NUCLEUS, max_inspections=0)],
    ids=["nucleus", "whole", "no inspections"],
)
def test_engine_and_trainer_agree_on_every_token(roller, engine, sampling):
    made = roller(sampling, engine=engine)
    rollouts = sampled(made)
    assert any(one.inspected for one in rollouts) == bool(sampling.max_inspections)
    assert not all(one.truncated for one in rollouts)
    assert any(one.truncated for one in rollouts) or not sampling.max_inspections
    assert len({tuple(one.tokens) for one in rollouts}) > 4, "the rollouts of a group differ"
    difference = scored(made, rollouts) - engine_says(rollouts)
    assert len(difference) > 30 and difference.abs().max() < 1e-5


def test_they_agree_with_what_a_cache_holds(roller):
    made = roller()
    first = sampled(made)
    stats = made.reranker.stats()
    assert stats[0].cached_rows > 0, "rollouts of a group share the rows of their prompt"
    assert stats[1].encoded == 2 + 5 + 1, "what two tasks show is encoded once"
    again = sampled(made)
    assert [one.tokens for one in again] == [one.tokens for one in first]
    found = made.reranker.stats()
    assert found[0].cached_rows - stats[0].cached_rows > found[0].computed_rows / 2
    assert found[1].encoded == stats[1].encoded
    assert (scored(made, again) - engine_says(again)).abs().max() < 1e-5


def test_a_change_of_weights_is_seen_after_synchronizing(roller):
    made = roller()
    before = sampled(made)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.mul_(1.05)
    made.synchronize()
    after = sampled(made)
    assert (scored(made, after) - engine_says(after)).abs().max() < 1e-5
    assert (scored(made, before) - engine_says(before)).abs().max() > 1e-3, "those are of the past"


def test_mixed_precision_leaves_compressed_rows_as_the_engine_has_them(roller, monkeypatch):
    made = roller()
    rollouts = sampled(made)
    seen = []
    embed = made.model.embed
    monkeypatch.setattr(made.model, "embed", lambda *args: [seen.append(args[-1]), embed(*args)][1])
    with torch.no_grad():
        exact = scored(made, rollouts)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = scored(made, rollouts)
    assert torch.equal(*seen), "the row table"
    assert 0 < (mixed - exact).abs().mean() < 0.05


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_engine_and_trainer_agree_on_a_gpu(checkpoint, tasks):
    """The emulated GPU has no gradients."""
    model, processor, _ = checkpoint
    own = copy.deepcopy(model).to("cuda")
    config = EngineConfig(max_sequences=4, cache_bytes=2**22)
    with Reranker(own, processor, config=config) as reranker:
        made = RetrvRollout(reranker, tasks[:1], NUCLEUS)
        rollouts = sampled(made, 3)
        assert any(one.inspected for one in rollouts)
        found = scored(made, rollouts)
        difference = found.cpu() - engine_says(rollouts)
        assert difference.abs().max() < 1e-4, "a GPU sums in another order"
        (-found.sum()).backward()
    assert own.icm.pool.embedding.grad.abs().sum() > 0


def test_a_server_gets_what_is_trained_by_value(roller, monkeypatch):
    made, given = roller(), []
    made.model.requires_grad_(False)
    made.model.icm.requires_grad_(True)
    monkeypatch.setattr(made.reranker, "load_weights", given.append)
    made.synchronize()
    monkeypatch.setattr(made.reranker, "engine", SimpleNamespace(close=lambda: None))
    made.synchronize()
    assert given[0] == {}, "an engine here reads them where they are"
    assert given[1].keys() == {f"icm.{name}" for name, _ in made.model.icm.named_parameters()}
    assert not any(value.requires_grad for value in given[1].values())


def test_only_what_the_policy_chose_counts(roller):
    made = roller()
    rollouts = sampled(made)
    tokens = made.reranker.processor.tokens
    fields = as_fields(rollouts, tokens.pad)
    forced = {tokens.think_start, tokens.answer_start, tokens.answer_end, tokens.inspect_end}
    for rollout, ids, logprobs, mask in zip(
        rollouts,
        fields["completion_ids"],
        fields["logprobs"],
        fields["env_mask"],
        strict=True,
    ):
        assert len(ids) == len(logprobs) == len(mask)
        chosen = [token for token, own in zip(ids, mask, strict=True) if own]
        own = [t for t in rollout.tokens if t not in forced]
        if rollout.truncated:
            own.remove(tokens.think_end)
        assert chosen == own
        assert all(not p for p, own in zip(logprobs, mask, strict=True) if not own)
        rows = sum(rollout.group.features[1 + k].item.picture_rows for k in rollout.inspected)
        assert ids.count(tokens.image_pad) == rows
        assert (ids[-1] == tokens.end) == (not rollout.truncated)


def test_other_tokens_than_the_engine_wrote_are_refused(roller):
    made = roller()
    rollout = next(one for one in sampled(made) if one.inspected)
    builder, tokens = made.reranker.builder.prompts, made.reranker.processor.tokens
    items = [one.item for one in rollout.group.features]
    about = rollout.group.request, tokens, builder, items

    def refused(changed: list[int], why: str) -> None:
        with pytest.raises(ValueError, match=why):
            Replay.of(changed, *about)

    written = list(rollout.tokens)
    refused(written[:-3], "no whole rollout")
    refused([*written, tokens.end], "cannot have written")
    refused([tokens.think_start, tokens.image_pad, *written[2:]], "not permitted")
    place = written.index(tokens.inspect_start)
    refused([*written[: place + 1], tokens.labels[99], *written[place + 2 :]], "not permitted")


def gradient(made: Any, rollouts: list[Rollout]) -> tuple[float, Tensor]:
    """Loss and gradient of the language model's and the compressor's weights."""
    made.model.zero_grad()
    loss = -scored(made, rollouts).sum()
    loss.backward()
    parts = (made.model.language_model, made.model.icm)
    return loss.item(), torch.cat([p.grad.flatten() for x in parts for p in x.parameters()])


def shown_otherwise(rollout: Rollout, change: Any) -> Rollout:
    """The rollout over features that ``change`` makes of each item's number and rows."""
    features = [
        replace(one, rows=change(k, one.rows), key=f"changed {k}")
        for k, one in enumerate(rollout.group.features)
    ]
    group = Group(rollout.task, features, rollout.group.request)
    return replace(rollout, group=group)


def test_blacking_out_an_inspected_candidate_changes_the_gradient(roller):
    made = roller()
    pictures = [0, 1, 2, 3]
    rollout = next(one for one in sampled(made) if set(one.inspected) & set(pictures))
    seen = 1 + next(k for k in rollout.inspected if k in pictures)
    assert rollout.group.features[seen].item.picture_rows

    def compressed_alike(black: bool) -> tuple[float, Tensor]:
        """Gradients where the candidate is black in full, but compressed as it was."""
        batch = PolicyBatch.of([rollout], made.reranker.processor, made.model.device)
        made.model.zero_grad()
        row_table = made.model.row_table

        def table(*args: Any) -> Tensor:
            rows = row_table(*args)
            first = int(batch.items.cu_seqlens[seen])
            if not black:
                return rows
            keep = torch.ones(len(rows), 1)
            keep[first : first + rollout.group.features[seen].item.picture_rows] = 0
            return rows * keep

        vars(made.model)["row_table"] = table
        loss = -log_probabilities(made.model, batch)[0].sum()
        del vars(made.model)["row_table"]
        loss.backward()
        return loss.item(), made.model.language_model.layers[0].mlp.up_proj.weight.grad.clone()

    loss, found = compressed_alike(False)
    other_loss, other = compressed_alike(True)
    assert loss == pytest.approx(gradient(made, [rollout])[0], abs=1e-5)
    assert abs(loss - other_loss) > 1e-3
    assert (found - other).norm() > 0.01 * found.norm()


def test_swapping_two_rows_changes_the_loss(roller):
    made = roller()
    rollout = sampled(made)[0]

    def swapped(number: int, rows: Tensor) -> Tensor:
        return rows[[1, 0, *range(2, len(rows))]] if number in (1, 2) and len(rows) > 1 else rows

    # Two candidates exchange their pictures, those in full and those that are compressed.
    loss, _ = gradient(made, [rollout])
    same, _ = gradient(made, [shown_otherwise(rollout, lambda _, rows: rows)])
    features = list(rollout.group.features)
    features[1], features[3] = features[3], features[1]
    exchanged = replace(rollout, group=Group(rollout.task, features, rollout.group.request))
    assert features[1].item.rows == features[3].item.rows
    other, _ = gradient(made, [exchanged])
    assert same == pytest.approx(loss, abs=1e-6) and abs(other - loss) > 1e-3
    looked = next(one for one in sampled(made) if {0, 1} & set(one.inspected))
    before, _ = gradient(made, [looked])
    turned, _ = gradient(made, [shown_otherwise(looked, swapped)])
    assert abs(turned - before) > 1e-4, "rows of an inspected picture have places"


def test_gradients_reach_the_compressor(roller):
    made = roller()
    made.model.visual.requires_grad_(False)
    gradient(made, sampled(made))
    moved = {n for n, p in made.model.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(n.startswith("icm.pool") for n in moved)
    assert any(n.startswith("icm.relate") for n in moved)
    assert any("embed_tokens" in n for n in moved)
    assert not any(".visual." in n for n in moved)


def test_rollouts_that_never_answer_are_truncated_and_earn_nothing(roller):
    made = roller(replace(NUCLEUS, max_reasoning_tokens=6))
    never_ending(made.reranker)
    rollouts = sampled(made)
    assert all(one.truncated and not one.well_formed and not one.empty for one in rollouts)
    assert FormatReward()(rollouts) == [0.0] * len(rollouts)
    assert rewards(ResultReward(), rollouts, 0.0) == [0.0] * len(rollouts)
    counted = rewards(ResultReward(truncated="count"), rollouts, 0.0)
    assert counted == [float(one.correct) for one in rollouts] and any(counted)
    assert (scored(made, rollouts) - engine_says(rollouts)).abs().max() < 1e-5


def test_rollouts_that_are_not_done_in_time_are_empty(roller):
    made = roller(seconds=1e-9)
    rollouts = sampled(made, 2)
    assert all(one.empty and one.answer is None and not one.correct for one in rollouts)
    assert FormatReward()(rollouts) == [None] * 4 == MarginReward()(rollouts)
    logged: dict[str, float] = {}
    assert rewards(ResultReward(), rollouts, 0.5, logged) == [None] * 4
    assert logged == {"lambda": 0.5, "empty": 1.0}
    fields = as_fields(rollouts, 7)
    assert (
        fields["completion_ids"] == [[7]] * 4
        and fields["env_mask"] == [[0]] * 4
        and fields["logprobs"] == [[0.0]] * 4
    )
    with pytest.raises(ValueError, match="all rollouts are empty"):
        scored(made, rollouts)
    made.seconds = None
    mixed = [*sampled(made, 1), rollouts[0]]
    batch = PolicyBatch.of(mixed, made.reranker.processor, made.model.device)
    values = spread(log_probabilities(made.model, batch)[0], batch, 400)
    assert (values[0] < 0).any() and not values[2].any()


def test_broken_weights_are_named(roller):
    made = roller()
    with torch.no_grad():
        made.model.language_model.norm.weight.fill_(torch.nan)
    made.synchronize()
    with pytest.raises(FloatingPointError, match="NaN"):
        sampled(made)


def rewards(
    reward: ResultReward, rollouts: list[Rollout], progress: float, logged: Any = None
) -> list[float | None]:
    state = SimpleNamespace(global_step=round(100 * progress), max_steps=100)
    log = (logged if logged is not None else {}).__setitem__
    return reward(rollouts, trainer_state=state, log_metric=log)


def made_up(**values: Any) -> Rollout:
    """A rollout of four candidates, the third of which is right."""
    task = Task("a", ["b", "c", "d", "e"], 2)
    group: Any = SimpleNamespace(task=task)
    replay: Any = object()
    return Rollout(group, replay=replay, **values)


def test_inspections_cost_more_as_training_goes_on():
    right = made_up(answer=2, inspected=(2, 0))
    wrong = made_up(answer=1, inspected=(1,))
    cut = made_up(answer=2, truncated=True)
    logged: dict[str, float] = {}
    assert rewards(ResultReward(), [right, wrong, cut], 0.0) == [1.0, 0.0, 0.0]
    assert rewards(ResultReward(), [right, wrong], 0.5, logged) == [0.75, 0.0]
    assert logged == {
        "lambda": 0.5,
        "empty": 0.0,
        "accuracy": 0.5,
        "inspections": 1.5,
        "truncated": 0.0,
    }
    assert rewards(ResultReward(), [right], 1.0) == [0.5]
    assert rewards(ResultReward("constant", 0.2), [right], 0.9) == pytest.approx([0.9])
    assert rewards(ResultReward("cosine"), [right], 0.25) == pytest.approx([1 - 0.5 * 0.1464466])


def test_lambda_goes_from_0_to_1():
    for growth in ("linear", "cosine"):
        values = [curriculum(growth, share / 10) for share in range(11)]
        assert values == sorted(values) and (values[0], values[-1]) == (0.0, 1.0)
        assert values[5] == pytest.approx(0.5)
    assert curriculum("constant", 0.7, 0.3) == 0.3
    with pytest.raises(ValueError, match="growth"):
        ResultReward("fast")
    with pytest.raises(ValueError, match="constant"):
        ResultReward("constant", 1.5)


def test_a_margin_is_the_right_label_over_its_best_rival(roller):
    reward = MarginReward(scale=4.0)
    made = [made_up(margin=value) for value in (2.0, -1.0, 100.0, -100.0, None)]
    assert reward(made) == [0.5, -0.25, 1.0, -1.0, 0.0]
    with pytest.raises(ValueError, match="scale"):
        MarginReward(0)
    rolled = roller()
    for one in sampled(rolled):
        assert one.margin is not None and (one.margin > 0 or one.answer is not None)


def test_mistakes_are_named(roller):
    for coldest in (0.0, 1e-6):  # which the engine takes for greedy
        with pytest.raises(ValueError, match="greedy"):
            roller(Sampling(temperature=coldest))
    with pytest.raises(ValueError, match="data set is empty"):
        RetrvRollout(roller().reranker, [])
    with pytest.raises(ValueError, match="plain engine"):
        roller(engine="plain", seconds=1.0)
    with pytest.raises(ValueError, match="count from 0"):
        Task("a", ["b", "c"], 2)
    with pytest.raises(ValueError, match="at least one"):
        Task("a", [], None)
    with pytest.raises(ItemError):
        Task("a", ["b", 3], 0)  # type: ignore[list-item]
    made = roller()
    plain = SimpleNamespace(state=SimpleNamespace(global_step=0))
    with pytest.raises(ValueError, match="RetrvGRPOTrainer"):
        made(["0"], plain)


def test_without_trl_the_trainer_says_what_to_install(monkeypatch):
    import sys

    import retrv_r1.rollout

    monkeypatch.delitem(sys.modules, "retrv_r1.rollout.trainer", raising=False)
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs TRL: .*\[rl\]"):
        _ = retrv_r1.rollout.RetrvGRPOTrainer


def test_seeds_follow_from_step_and_call(roller):
    made = roller()
    trainer = SimpleNamespace(state=SimpleNamespace(global_step=3), reads_rollouts=True)
    first, second = (made(["0", "0", "1"], trainer)["completion_ids"] for _ in range(2))
    assert first != second, "a step may sample several times"
    again = roller()
    assert again(["0", "0", "1"], trainer)["completion_ids"] == first
    assert [row["prompt"] for row in made.prompts()] == ["0", "1"]
