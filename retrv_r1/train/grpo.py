"""Stage ``grpo``: reinforcement learning with a reward that prices inspections.

Rollouts are sampled by our engine and learned from with TRL's GRPO (:mod:`retrv_r1.rollout`); the
price of an inspection grows while the model trains. Lists are drawn as in ``sft``. All of it is
computed in float32, so that engine and policy agree to rounding. Needs the extra ``rl``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer_callback import ProgressCallback

from retrv_engine import Sampling
from retrv_kernels.extras import install_command
from retrv_r1.files import saving
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.rollout.correction import Correction
from retrv_r1.rollout.rewards import FormatReward, MarginReward, ResultReward
from retrv_r1.rollout.sampling import RetrvRollout
from retrv_r1.train.adapters import adapt
from retrv_r1.train.checkpoints import newest_checkpoint
from retrv_r1.train.config import ConfigError, LoopConfig
from retrv_r1.train.curves import draw_curves, trim_curves
from retrv_r1.train.grpo_curves import RolloutRecorder
from retrv_r1.train.grpo_options import GRPOOptions
from retrv_r1.train.grpo_tasks import ListDraw, StepTasks
from retrv_r1.train.initialize import keep_agreement
from retrv_r1.train.loop import optimization
from retrv_r1.train.machine import Machine, MachineError, keep_freed_memory
from retrv_r1.train.memory import freeze_resemblance
from retrv_r1.train.sampling import ListSampler
from retrv_r1.train.schedule import Schedule
from retrv_r1.train.stage import RunStats, Setup
from retrv_r1.types import RetrvError

AT_ONCE = 32
"""Most rollouts that the engine runs together."""


class GRPOStage:
    """GRPO with our rollouts; in the form of a :class:`retrv_r1.train.stage.Stage`.

    It has a loop of its own, TRL's, so it has :meth:`fit` in the place of batches and losses.
    """

    Config = GRPOOptions
    schedule: Schedule | None = None
    stats: RunStats | None = None

    def __init__(self, setup: Setup) -> None:
        self.name, self.seed = setup.config.name, setup.config.loop.seed
        self.config: GRPOOptions = setup.config.stage
        self.source = setup.config.source
        with self._named():
            self.config.check()
        if not find_spec("trl"):
            raise RetrvError(f"the stage grpo needs TRL: {install_command('rl')}")
        config, steps = self.config, setup.config.loop.steps
        path = setup.result("model")
        model = RetrvR1ForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
        model.config.prompts |= setup.config.prompts
        self.model = model.to(setup.machine.device)
        self.processor = RetrvR1Processor.from_pretrained(path, model.config, config.max_text)
        self.embedder = setup.first_stage
        named, parts = setup.named, []
        for corpus in (setup.train, setup.val):
            vectors = setup.ranking(corpus)
            sampler = ListSampler(corpus, vectors, named, config.wordings)
            drawn = ListDraw(
                config.prompts, config.sizes, config.share, config.hard, config.default_instruction
            )
            parts.append(StepTasks(sampler, corpus.bank, drawn, steps, self.seed))
        self.tasks, self._held_out = parts
        self.rollout = self._rollout()
        # Behind the engine, which reads the layers as they are without adapters.
        self._adapted = adapt(self.model, config.lora) if config.lora else None
        if self._adapted is None:
            self.model.requires_grad_(True)
        self.model.freeze_towers()
        self.model.icm.requires_grad_(config.compressor)
        freeze_resemblance(self.model)
        keep_agreement(self.model)

    def _rollout(self) -> RetrvRollout:
        config = self.config
        with self._named():
            sampling = Sampling(
                config.temperature,
                config.top_p,
                config.max_reasoning_tokens,
                config.max_inspections,
            )
            return RetrvRollout.over(
                self.model,
                self.processor,
                self.tasks,
                sampling,
                together=min(AT_ONCE, config.prompts * config.group),
                seed=self.seed,
                seconds=config.seconds or None,
            )

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Says which file has the option that a ValueError is about."""
        try:
            yield
        except ValueError as error:
            raise ConfigError(f"{self.source}: stage: {error}") from error

    def rewards(self) -> tuple[list[Any], list[float]]:
        """Reward functions and their weights; those without a weight are left out."""
        config: Any = self.config
        truncated: Any = "zero" if config.truncated == "mask" else config.truncated
        with self._named():
            result = ResultReward(config.price, config.constant, truncated)
        weighted = [
            (FormatReward(), config.format_weight),
            (result, config.result_weight),
            (MarginReward(), config.margin_weight),
        ]
        kept = [(reward, weight) for reward, weight in weighted if weight]
        return [reward for reward, _ in kept], [weight for _, weight in kept]

    def fit(self, loop: LoopConfig, out: Path, resume: bool, machine: Machine) -> Path:
        """Trains to the end, and writes the result to ``out/final``.

        Args:
            resume: continue from the newest checkpoint in ``out``, after its step.
        """
        from retrv_r1.rollout.trainer import RetrvGRPOTrainer

        if self.schedule is not None:
            raise MachineError("the stage grpo has no time limit: leave --minutes out")
        if loop.processes > 1 or loop.rates:
            raise ConfigError(f"{self.source}: grpo takes neither loop.processes nor loop.rates")
        config: Any = self.config
        if loop.threads:
            torch.set_num_threads(loop.threads)
        if machine.device.type == "cpu":
            keep_freed_memory()
        last, step = newest_checkpoint(out) if resume else (None, 0)
        curves = out / f"{self.name}.jsonl"
        trim_curves(curves, step)
        recorder = RolloutRecorder(curves, self)  # type: ignore[arg-type]
        rewards, weights = self.rewards()
        with self._named():
            arguments = self._arguments(loop, out, machine, weights)
            trainer = RetrvGRPOTrainer(
                self.rollout,
                rewards,
                arguments,
                correction=Correction(config.correction, config.cap),
                bound=config.bound,
            )
        trainer.pop_callback(ProgressCallback)
        trainer.add_callback(recorder)
        with recorder.timed("all"):
            trainer.train(resume_from_checkpoint=last and str(last))
        self.stats = RunStats(recorder.steps, recorder.samples, dict(recorder.seconds))
        with saving(f"the result in {out / 'final'}"):
            self.save(out / "final")
        draw_curves(curves, f"{self.name}: {trainer.state.global_step} steps")
        return out / "final"

    def validate(self) -> dict[str, float]:
        """Greedy rollouts on lists of the validation split."""
        config, found = self.config, []
        for step in range(-(-config.validation // config.prompts)):
            found += self.rollout.sample(self._held_out.of_step(step), None)
        found = found[: config.validation]
        if not found:
            return {}

        def mean(values: Sequence[float]) -> float:
            return float(np.mean(values))

        return {
            "val_accuracy": mean([one.correct for one in found]),
            "val_inspections": mean([len(one.inspected) for one in found]),
            "val_well_formed": mean([one.well_formed for one in found]),
        }

    def save(self, out: Path) -> None:
        """Writes the complete result, first stage included, adapters added to the weights."""
        if self._adapted is not None:
            self._adapted = self._adapted.merge_and_unload()
        self.model.save_pretrained(out)
        self.processor.save_pretrained(out)
        if self.embedder is not None:
            self.embedder.save_pretrained(out / "embedder")

    def _arguments(
        self, loop: LoopConfig, out: Path, machine: Machine, weights: Sequence[float]
    ) -> Any:
        from trl import GRPOConfig

        config = self.config
        rollouts = config.prompts * config.group
        return GRPOConfig(
            output_dir=str(out),
            max_steps=loop.steps,
            per_device_train_batch_size=config.batch,
            gradient_accumulation_steps=rollouts // config.batch,
            num_generations=config.group,
            shuffle_dataset=False,
            reward_weights=list(weights),
            loss_type=config.loss,
            epsilon=config.epsilon,
            beta=config.kl,
            mask_truncated_completions=config.truncated == "mask",
            **optimization(loop),
            save_steps=loop.save_every,
            save_total_limit=2,
            logging_steps=loop.log_every,
            seed=loop.seed,
            use_cpu=machine.device.type == "cpu",
            bf16=False,
            gradient_checkpointing=False,
            remove_unused_columns=False,
            disable_dropout=True,
            report_to="none",
        )
