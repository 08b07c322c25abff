"""TRL's ``GRPOTrainer`` with a policy that reads what the rollouts saw; needs the extra ``rl``.

Everything else is TRL's: groups, advantages, clipping, losses, optimizer, checkpoints. Used of it
are the contract of rollouts (``rollout_func``, ``env_mask``) and of losses (per-token
log-probabilities; advantages of shape ``[b, t]``), and nothing experimental.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_model, save_model
from torch import Tensor
from transformers import GenerationConfig, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from retrv_engine import EngineDied
from retrv_r1.files import saving
from retrv_r1.rollout.correction import Correction, DifferenceTooLarge, check_difference
from retrv_r1.rollout.policy import PolicyBatch, log_probabilities, spread
from retrv_r1.rollout.sampling import RetrvRollout
from retrv_r1.rollout.task import Rollout

__all__ = ["DifferenceTooLarge", "RetrvGRPOTrainer"]


class _Synchronizer(TrainerCallback):
    """Has the engine sample with the new weights after each step."""

    def __init__(self, trainer: RetrvGRPOTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """See :meth:`RetrvGRPOTrainer.start`."""
        self.trainer.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """The optimizer has changed the weights."""
        with self.trainer.timed("sync"):
            self.trainer.rollout.synchronize()


class RetrvGRPOTrainer(GRPOTrainer):
    """GRPO whose policy sees the compressed and inspected rows of its rollouts.

    The model of ``rollout`` is trained: those of its parameters that require a gradient. Its tower
    is frozen; set ``model.icm.requires_grad_(False)`` to freeze the compressor too.

    At every step the engine's log-probabilities are compared with the policy's before the update,
    ``engine_difference/mean`` and ``/max`` in nats. A mean above ``bound`` stops training.

    Args:
        rollout: what samples; its tasks are the data set.
        reward_funcs: reward functions in TRL's form; ours are in :mod:`retrv_r1.rollout.rewards`. A
            rollout whose reward is None, NaN or infinite for any of them has no advantage.
        args: TRL's options. Temperature, nucleus and limits are those of ``rollout``.
        correction: how the loss is corrected for the engine's log-probabilities.
        bound: largest mean difference between engine and policy, in nats.
        options: other arguments of TRL's trainer, such as ``callbacks``.
    Raises:
        ValueError: several processes, fewer tasks than a step takes, or options of TRL that would
            have another engine generate.
        DifferenceTooLarge: while training; the message says what to look at.
    """

    reads_rollouts = True

    def __init__(
        self,
        rollout: RetrvRollout,
        reward_funcs: Callable[..., Any] | Sequence[Callable[..., Any]],
        args: GRPOConfig,
        *,
        correction: Correction | None = None,
        bound: float = 1e-3,
        **options: Any,
    ) -> None:
        self.rollout, self.correction, self.bound = rollout, correction or Correction(), bound
        self._current: Sequence[Rollout] = ()
        self._scored: tuple[Tensor, Tensor] | None = None
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._logged = 0
        model = rollout.model
        model.freeze_towers()
        if not hasattr(model, "generation_config"):  # TRL writes the padding token there
            model.generation_config = GenerationConfig()
        if args.use_vllm or args.use_transformers_continuous_batching:
            raise ValueError("rollouts come from our engine: leave use_vllm and the like off")
        if args.world_size > 1:
            raise ValueError("RetrvGRPOTrainer trains in one process")
        needed = args.generation_batch_size // args.num_generations
        if len(rollout.dataset) < needed:
            raise ValueError(
                f"{len(rollout.dataset)} tasks are fewer than the {needed} that are rolled out "
                "together: lower per_device_train_batch_size, or raise num_generations"
            )
        # TRL would load the reference model from a path: ours is a copy of the model as it is.
        self.beta, args.beta = args.beta, 0.0
        beta = self.beta
        rewards = list(reward_funcs) if isinstance(reward_funcs, Sequence) else [reward_funcs]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You are using 'rollout_func'", UserWarning)
            super().__init__(
                model,
                rewards,
                args,
                train_dataset=Dataset.from_list(rollout.prompts()),
                processing_class=rollout.reranker.processor.tokenizer,
                rollout_func=self._roll,
                **options,
            )
        self.beta = args.beta = beta
        if beta:
            self.ref_model = copy.deepcopy(model).eval().requires_grad_(False)
        self.add_callback(_Synchronizer(self))

    # Rollouts.

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch, with its rollouts beside it."""
        try:
            batch = super()._generate_and_score_completions(inputs)
            return {**batch, "rollouts": list(self._current)}
        finally:
            self._current = ()

    def _roll(self, prompts: list[str], _: Any) -> dict[str, Any]:
        with self.timed("rollout"):
            fields = self.rollout(prompts, self)
        self._current = fields["rollout"]
        return fields

    def _calculate_rewards(self, *args: Any) -> Tensor:
        """TRL's rewards; those of a rollout count together or not at all."""
        with self.timed("rewards"):
            rewards = super()._calculate_rewards(*args)
        broken = rewards.isinf().any(1) | rewards.isnan().any(1)
        self._note("rewards/left_out", float(broken.float().mean()))
        return rewards.masked_fill(broken[:, None], torch.nan)

    # The policy.

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor, None]:
        """Of the rollouts that are read now; TRL's rows of token ids say only how many places."""
        if self._scored is not None:
            return *self._scored, None
        rollouts = self._current
        size = batch_size or len(rollouts)
        parts = [
            self._score(model, rollouts[first : first + size], logits_to_keep)
            for first in range(0, len(rollouts), size)
        ]
        logprobs, entropies = (torch.cat(part) for part in zip(*parts, strict=True))
        return logprobs, entropies, None

    def _score(self, model: Any, rollouts: Sequence[Rollout], width: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies at the places of completions, ``[b, width]`` each."""
        if all(one.empty for one in rollouts):  # a loss of 0 that has a gradient
            nothing = torch.zeros(len(rollouts), width, device=self.accelerator.device)
            anything = next(p for p in self.model.parameters() if p.requires_grad)
            return nothing + 0 * anything.sum(), nothing
        policy = self.accelerator.unwrap_model(model)
        processor = self.rollout.reranker.processor
        batch = PolicyBatch.of(rollouts, processor, self.accelerator.device)
        with self.accelerator.autocast():
            logprobs, entropies = log_probabilities(policy, batch)
        return spread(logprobs, batch, width), spread(entropies, batch, width)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's loss, with advantages that are corrected for what the engine sampled from."""
        with self.timed("forward"):
            self._scored = self._score(model, inputs["rollouts"], inputs["completion_ids"].shape[1])
        try:
            logprobs = inputs.get("old_per_token_logps", self._scored[0]).detach()
            mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
            gap = (logprobs - inputs["sampling_per_token_logps"]).masked_fill(~mask, 0.0)
            largest = check_difference(gap[mask], self.bound)
            weights = self.correction.weights(gap)
            for name, value in largest.items():
                self._note(name, value)
            if mask.any():
                self._note("importance/mean", float(weights[mask].mean()))
                self._note("importance/max", float(weights[mask].max()))
            corrected = inputs["advantages"][:, None] * weights
            return super()._compute_loss(model, {**inputs, "advantages": corrected})
        finally:
            self._scored = None

    # What is logged and kept.

    def train(self, *args: Any, **options: Any) -> Any:
        """TRL's; however it ends, the reranker goes on to rank with the weights as they are."""
        try:
            return super().train(*args, **options)
        finally:
            self.rollout.model.eval()
            with suppress(EngineDied):  # it gets them before its next request
                self.rollout.synchronize()

    def start(self) -> None:
        """Begins where the state is: a checkpoint may have been loaded."""
        self._seconds.clear()
        self._logged = self.state.global_step
        self.rollout.synchronize()

    def _note(self, name: str, value: float) -> None:
        self._metrics["train" if self.model.training else "eval"][name].append(value)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the seconds inside to ``seconds/PART``, which are logged for a step."""
        began = time.perf_counter()
        yield
        self._seconds[part] += time.perf_counter() - began

    def training_step(self, *args: Any, **options: Any) -> Tensor:
        """TRL's; what it takes beside the other parts is the backward pass."""
        began, before = time.perf_counter(), sum(self._seconds.values())
        loss = super().training_step(*args, **options)
        others = sum(self._seconds.values()) - before
        self._seconds["backward"] += time.perf_counter() - began - others
        return loss

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        """TRL's, with the seconds of a step's parts."""
        if "loss" in logs:
            steps = max(1, self.state.global_step - self._logged)
            logs |= {f"seconds/{part}": spent / steps for part, spent in self._seconds.items()}
            self._seconds.clear()
            self._logged = self.state.global_step
        super().log(logs, *args, **options)

    # Checkpoints keep the module's own names: save_pretrained renames a nested backbone's weights,
    # and the Trainer does not rename them back when it resumes.
    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        target = Path(output_dir or self.args.output_dir)
        target.mkdir(parents=True, exist_ok=True)
        save_model(self.model, str(target / "model.safetensors"))

    def _save_checkpoint(self, *args: Any) -> None:
        """TRL's; a full disk is an OSError."""
        with saving(f"checkpoint-{self.state.global_step} in {self.args.output_dir}"):
            super()._save_checkpoint(*args)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_model(self.model, Path(resume_from_checkpoint) / "model.safetensors", strict=True)

    def _send_telemetry(self) -> None:
        """Reports nothing to anybody."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Writes none: a run has its record."""
