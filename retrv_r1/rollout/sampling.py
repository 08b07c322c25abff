"""Samples rollouts with a reranker's engine, in the form of TRL's ``rollout_func``."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from retrv_engine import (
    DeadlineExceeded,
    Engine,
    EngineConfig,
    LocalEngine,
    Output,
    PlainEngine,
    Request,
    Sampling,
)
from retrv_engine.runner import ModelRunner
from retrv_engine.sampler import COLDEST
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.rerank.requests import ItemFeatures
from retrv_r1.rerank.reranker import Reranker
from retrv_r1.rollout.adapters import adapted, merged
from retrv_r1.rollout.replay import Replay
from retrv_r1.rollout.task import Group, Rollout, Task


class RetrvRollout:
    """Samples rollouts for a trainer; pass it as ``rollout_func``.

    A prompt is the number of a task in ``dataset``, as text. All rollouts of a call run together:
    those of a group share their prompt's rows in the engine's cache, each distinct item is encoded
    once, and a candidate that several rollouts inspect in one step is loaded once.

    Args:
        engine: reranker that samples; its model is the one that is trained.
        dataset: tasks; only those that are asked for are looked up, so they may be made on demand.
        sampling: temperature, nucleus and limits of all rollouts; their seeds are drawn anew.
        seed: seed of the rollouts' own seeds.
        seconds: time limit of a call; rollouts that are not done then are empty. None for none.
    Attributes:
        seconds_spent: seconds of the last call by part: ``features``, ``prompts``, ``sampling``.
    Raises:
        ValueError: no tasks; greedy sampling, so that all rollouts of a group would be the same; or
            an engine that was made after adapters.
    """

    def __init__(
        self,
        engine: Reranker,
        dataset: Sequence[Task],
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
        seconds: float | None = None,
    ) -> None:
        limit = engine.model.config.max_inspections
        sampling = sampling or Sampling(temperature=1.0, max_inspections=limit)
        if sampling.temperature < COLDEST:
            raise ValueError("greedy rollouts of a group are all the same: give a temperature")
        if not len(dataset):
            raise ValueError("the data set is empty: give at least one task")
        if seconds is not None and isinstance(engine.engine, PlainEngine):
            raise ValueError('the plain engine keeps no time limit: use engine="local"')
        runner = getattr(engine.engine, "runner", None)
        if isinstance(runner, ModelRunner) and adapted(runner.decoder):
            raise ValueError(
                "the engine reads the layers as they are without adapters: make the reranker "
                "first, then the adapters"
            )
        self.reranker, self.dataset, self.sampling = engine, dataset, sampling
        self.seed, self.seconds = seed, seconds
        self.seconds_spent: dict[str, float] = {}
        self._calls = (-1, 0)  # step, and number of calls in it

    @classmethod
    def over(
        cls,
        model: RetrvR1ForConditionalGeneration,
        processor: RetrvR1Processor,
        dataset: Sequence[Task],
        sampling: Sampling,
        *,
        together: int,
        **options: Any,
    ) -> Self:
        """Rollouts of a model, on an embedded engine of their own.

        Args:
            together: rollouts that run at once.
            options: other arguments of the class.
        """
        config = EngineConfig(max_sequences=together)
        return cls(Reranker(model, processor, config=config), dataset, sampling, **options)

    @property
    def model(self) -> RetrvR1ForConditionalGeneration:
        """The model that samples and is trained."""
        return self.reranker.model

    def prompts(self) -> list[dict[str, str]]:
        """The rows of a data set for TRL: ``Dataset.from_list(rollout.prompts())``."""
        return [{"prompt": str(number)} for number in range(len(self.dataset))]

    def __call__(self, prompts: Sequence[str], trainer: Any) -> dict[str, list[Any]]:
        """Rolls out a task for each prompt, in TRL's form.

        Returns:
            ``prompt_ids``, ``completion_ids``, ``logprobs``, ``env_mask`` (1 for tokens that the
            policy chose), and ``rollout``, which reaches rewards and trainer.
        Raises:
            ValueError: a trainer whose policy would not see the candidates.
        """
        if not getattr(trainer, "reads_rollouts", False):
            raise ValueError(
                "this trainer reads token ids alone, so its policy would not see the candidates: "
                "use retrv_r1.rollout.RetrvGRPOTrainer, or a subclass"
            )
        step, calls = trainer.state.global_step, 0
        if self._calls[0] == step:
            calls = self._calls[1] + 1
        self._calls = step, calls
        seeds = [
            random.Random(f"{self.seed} {step} {calls} {place}").getrandbits(63)
            for place in range(len(prompts))
        ]
        numbers = [int(prompt) for prompt in prompts]
        tasks = {number: self.dataset[number] for number in dict.fromkeys(numbers)}
        rollouts = self.sample([tasks[number] for number in numbers], seeds)
        return as_fields(rollouts, self.reranker.processor.tokens.pad)

    def sample(self, tasks: Sequence[Task], seeds: Sequence[int] | None) -> list[Rollout]:
        """Rolls out tasks, in order; those that are the same object form a group.

        Args:
            seeds: seed of each rollout; None for greedy ones.
        Raises:
            ItemError: an item cannot be used.
            FloatingPointError: the model gives NaN.
            RequestTooLarge: a prompt that the engine's cache cannot hold.
        """
        began = time.perf_counter()
        deadline = None if self.seconds is None else began + self.seconds
        was_training = self.model.training
        self.model.eval()  # norms of a tower have statistics
        try:
            groups = self._groups(list({id(task): task for task in tasks}.values()))
            requests = []
            for place, task in enumerate(tasks):
                sampling = replace(self.sampling, temperature=0.0)
                if seeds is not None:
                    sampling = replace(self.sampling, seed=seeds[place])
                requests.append(replace(groups[id(task)].request, sampling=sampling))
            started = time.perf_counter()
            with merged(self.model):
                outputs = self._generate(requests, deadline)
            self.seconds_spent["sampling"] = time.perf_counter() - started
        finally:
            self.model.train(was_training)
        return [
            Rollout(groups[id(task)]) if output is None else self._rollout(groups[id(task)], output)
            for task, output in zip(tasks, outputs, strict=True)
        ]

    def group(self, task: Task) -> Group:
        """A task as its rollouts share it: features and request."""
        return self._groups([task])[id(task)]

    def synchronize(self) -> None:
        """Has the engine sample with the model's present weights, and forgets what old ones made.

        An engine of this process reads the trained parameters where they are; a server gets copies.

        Raises:
            ValueError: a server does not get LoRA's.
        """
        own = isinstance(self.reranker.engine, LocalEngine | PlainEngine)
        weights: Mapping[str, Tensor] = {}
        if not own:
            named = self.model.named_parameters()
            weights = {name: one.detach() for name, one in named if one.requires_grad}
        self.reranker.load_weights(weights)

    @torch.no_grad()
    def _groups(self, tasks: Sequence[Task]) -> dict[int, Group]:
        """The tasks with features and requests, by the tasks' ids; items are encoded together."""
        began = time.perf_counter()
        items = [item for task in tasks for item in task.items]
        places = [place for task in tasks for place in range(len(task.items))]
        features = iter(self.reranker.encoder.encode(items, places))
        encoded = time.perf_counter()
        groups = {}
        for task in tasks:
            own = [next(features) for _ in task.items]
            query, *candidates = map(ItemFeatures, task.items, own)
            prepared = self.reranker.builder.listwise(
                query,
                candidates,
                reason=True,
                full_tokens=False,
                instruction=task.instruction,
                sampling=self.sampling,
            )
            groups[id(task)] = Group(task, own, prepared.request)
        ended = time.perf_counter()
        self.seconds_spent = {"features": encoded - began, "prompts": ended - encoded}
        return groups

    def _generate(
        self, requests: Sequence[Request], deadline: float | None
    ) -> Sequence[Output | None]:
        """Outputs of the requests; None for those that are not done at the deadline."""
        engine = self.reranker.engine
        if deadline is None or not isinstance(engine, Engine):
            return engine.generate(requests)
        left = max(0.0, deadline - time.perf_counter())
        handles = [engine.submit(request, deadline=left) for request in requests]
        outputs: list[Output | None] = []
        try:
            for handle in handles:
                try:
                    outputs.append(handle.result())
                except DeadlineExceeded:
                    outputs.append(None)
        finally:
            for handle in handles:
                handle.cancel()
        return outputs

    def _rollout(self, group: Group, output: Output) -> Rollout:
        task, builder = group.task, self.reranker.builder
        replay = Replay.of(
            output.tokens,
            group.request,
            self.reranker.processor.tokens,
            builder.prompts,
            [one.item for one in group.features],
            task.instruction,
        )
        margin = None
        if task.answer is not None and len(task.candidates) > 1:
            logits = output.label_logits.double()
            rivals = torch.cat([logits[: task.answer], logits[task.answer + 1 :]])
            margin = float(logits[task.answer] - rivals.max())
        return Rollout(
            group,
            output.tokens,
            output.logprobs,
            output.answer,
            output.inspected,
            output.well_formed,
            not replay.closed,
            margin,
            replay,
        )


def as_fields(rollouts: Sequence[Rollout], pad: int) -> dict[str, list[Any]]:
    """Rollouts in the form of TRL's ``rollout_func``.

    Args:
        pad: token of which an empty rollout consists, since TRL needs one; it carries no loss.
    """
    fields: dict[str, list[Any]] = {
        name: [] for name in ("prompt_ids", "completion_ids", "logprobs", "env_mask")
    }
    for rollout in rollouts:
        replay = rollout.replay
        if replay is None:
            row: tuple[list[Any], ...] = ([pad], [pad], [0.0], [0])
        else:
            logprobs = replay.placed(rollout.logprobs)
            row = (replay.prompt_ids, replay.completion_ids, logprobs, replay.mask)
        for values, value in zip(fields.values(), row, strict=True):
            values.append(value)
    return fields | {"rollout": list(rollouts)}
