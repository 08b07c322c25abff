"""A schedule by time: learning rate, list sizes and the end follow the clock, not the step."""

from __future__ import annotations

import math
import multiprocessing
import sys
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from retrv_r1.train.machine import MachineError

CHECKPOINTS = 4
"""Checkpoints, each with a validation, over the time that a run has."""


class Schedule:
    """Position of a run with a time limit, in the steps that its configuration plans.

    Half of the time is half of the planned steps, however many are really made, so that everything
    that follows the schedule completes on every machine. Processes that make batches read the
    position that the trainer wrote last: a batch lags by as many steps as there are processes.

    Args:
        steps: steps that the configuration plans.
        seconds: time from now to the finished result, loading, validation and saving included.
    """

    def __init__(self, steps: int, seconds: float) -> None:
        if seconds <= 0:
            raise MachineError(f"a run needs a positive time limit, got {seconds} seconds")
        self.steps, self.seconds = steps, seconds
        self.reserve, self.validate_at_end = seconds / 10, False
        self._started = self._began = time.monotonic()
        self._position = multiprocessing.Value("d", 0.0, lock=False)

    @property
    def position(self) -> float:
        """Position between 0 and ``steps``; it never decreases."""
        return self._position.value

    @property
    def ended(self) -> bool:
        return self.position >= self.steps

    @property
    def loading(self) -> float:
        """Share of the time that had passed when the schedule started."""
        return (self._began - self._started) / self.seconds

    def begin(self, *, validate_at_end: bool) -> None:
        """Starts the schedule, once everything is loaded.

        Args:
            validate_at_end: validate only at the end, because it takes long.
        """
        self._began, self.validate_at_end = time.monotonic(), validate_at_end

    def tick(self) -> None:
        """Updates the position from the clock."""
        end = self._started + self.seconds - self.reserve
        left, gone = end - self._began, time.monotonic() - self._began
        share = min(1.0, gone / left) if left > 0 else 1.0
        self._position.value = max(self._position.value, self.steps * share)


def cosine(position: float, steps: int, warmup: int, least: float = 0.05) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine down to ``least``.

    The same as transformers' ``cosine_with_min_lr``, but for fractional positions too.
    """
    if position < warmup:
        return position / warmup
    progress = min(1.0, (position - warmup) / max(1, steps - warmup))
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * progress))


class ScheduleCallback(TrainerCallback):
    """Advances a schedule, saves at every quarter of it, and stops at its end.

    Args:
        validate: function that validates at a step. It is called once before the first step, to
            know how much time to reserve for the last validation.
    """

    def __init__(self, schedule: Schedule, validate: Callable[[int], None]) -> None:
        self.schedule, self.validate, self._stopped = schedule, validate, 0.0
        # For saving the result, drawing curves, and what a first step has to load or compile.
        self._margin = min(6.0, 0.1 * schedule.seconds)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        started = time.monotonic()
        self.validate(state.global_step)
        took = time.monotonic() - started
        self.schedule.reserve = 1.5 * took + self._margin
        self.schedule.begin(validate_at_end=took > self.schedule.seconds / 20)
        if self.schedule.loading > 0.5:
            share, whole = self.schedule.loading, self.schedule.seconds
            warning = f"loading took {share:.0%} of {whole:.0f} s: too little is left for training"
            print(warning, file=sys.stderr, flush=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        schedule = self.schedule
        before = int(CHECKPOINTS * schedule.position / schedule.steps)
        schedule.tick()
        control.should_save = int(CHECKPOINTS * schedule.position / schedule.steps) > before
        control.should_training_stop = schedule.ended
        self._stopped = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        took = time.monotonic() - self._stopped
        self.schedule.reserve = max(self.schedule.reserve, 1.25 * took + self._margin)
