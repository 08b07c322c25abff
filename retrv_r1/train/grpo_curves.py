"""Curves of the stage ``grpo``: what TRL logs, under our names."""

from __future__ import annotations

import time
from typing import Any

from retrv_r1.train.curves import Recorder

LOGGED = {
    "reward": "reward",
    "rewards/format/mean": "reward_format",
    "rewards/result/mean": "reward_result",
    "rewards/margin/mean": "reward_margin",
    "rewards/left_out": "left_out",
    "frac_reward_zero_std": "groups_all_alike",
    "accuracy": "accuracy",
    "inspections": "inspections",
    "lambda": "lambda",
    "truncated": "truncated",
    "empty": "empty",
    "completions/mean_length": "chosen_tokens",
    "entropy": "entropy",
    "kl": "kl",
    "clip_ratio/region_mean": "clipped",
    "engine_difference/mean": "engine_difference_mean",
    "engine_difference/max": "engine_difference_max",
    "importance/max": "importance_max",
    "grad_norm": "grad_norm",
    "seconds/rollout": "seconds_rollout",
    "seconds/rewards": "seconds_rewards",
    "seconds/forward": "seconds_forward",
    "seconds/backward": "seconds_backward",
    "seconds/sync": "seconds_sync",
}
"""What curves show, by TRL's names. Seconds are those of a step."""


class RolloutRecorder(Recorder):
    """Writes the averages that TRL logs, as JSON lines."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Opens the bar; steps before a checkpoint are not this run's."""
        super().on_train_begin(args, state, control, **options)
        self._seen = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Writes a line; shows reward and accuracy beside the bar."""
        if not logs or "loss" not in logs:
            return
        elapsed, self.since = time.time() - self.since, time.time()
        options: Any = self.stage.config
        steps, self._seen = state.global_step - self._seen, state.global_step
        samples = steps * options.prompts * options.group
        self.steps += steps
        self.samples += samples
        row = {"step": state.global_step, "loss": logs["loss"], "lr": logs.get("learning_rate")}
        row |= {ours: logs[name] for name, ours in LOGGED.items() if logs.get(name) is not None}
        row |= {"rollouts_per_s": samples / elapsed, "seconds": elapsed}
        if self.training_bar is not None:
            shown = {name: row[name] for name in ("reward", "accuracy") if name in row}
            self.training_bar.set_postfix(shown)
        self._write(row)
