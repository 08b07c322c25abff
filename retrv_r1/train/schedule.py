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
    """How far a run with a time limit is, in the steps that its configuration plans.

    Half of the time is half of the planned steps, however many are really made: everything that
    follows the schedule ends where it should, on every machine. Processes that make batches read
    the place as the trainer last wrote it: a batch is as many steps behind as there are processes.

    Args:
        steps: that the configuration plans.
        seconds: from now to the finished result: loading, validation and saving count.
    """

    def __init__(self, steps: int, seconds: float) -> None:
        if seconds <= 0:
            raise MachineError(f"a run needs some time, got {seconds} seconds")
        self.steps, self.seconds = steps, seconds
        self.reserve, self.rarely = seconds / 10, False
        self._started = self._began = time.monotonic()
        self._place = multiprocessing.Value("d", 0.0, lock=False)

    @property
    def place(self) -> float:
        """Between 0 and ``steps``; never goes back."""
        return self._place.value

    @property
    def ended(self) -> bool:
        return self.place >= self.steps

    @property
    def loading(self) -> float:
        """The share of the time that was gone when the schedule started."""
        return (self._began - self._started) / self.seconds

    def begin(self, *, rarely: bool) -> None:
        """Everything is loaded: the schedule starts.

        Args:
            rarely: validate at the end alone, since it takes long.
        """
        self._began, self.rarely = time.monotonic(), rarely

    def tick(self) -> None:
        """Looks at the clock."""
        end = self._started + self.seconds - self.reserve
        left, gone = end - self._began, time.monotonic() - self._began
        share = min(1.0, gone / left) if left > 0 else 1.0
        self._place.value = max(self._place.value, self.steps * share)


def cosine(place: float, steps: int, warmup: int, least: float = 0.05) -> float:
    """The share of the peak learning rate: linear warm-up, then a cosine to ``least``.

    What transformers' ``cosine_with_min_lr`` gives, at places that are no whole steps too.
    """
    if place < warmup:
        return place / warmup
    progress = min(1.0, (place - warmup) / max(1, steps - warmup))
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * progress))


class ByTheClock(TrainerCallback):
    """Moves a schedule on, saves at every quarter of it, and stops where it ends.

    Args:
        validate: validates at a step; done once before the first, to know what to reserve for the
            last time.
    """

    def __init__(self, schedule: Schedule, validate: Callable[[int], None]) -> None:
        self.schedule, self.validate, self._stopped = schedule, validate, 0.0
        # For the result, the drawn curves, and what a first step has to load or compile.
        self._margin = min(6.0, 0.1 * schedule.seconds)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        started = time.monotonic()
        self.validate(state.global_step)
        took = time.monotonic() - started
        self.schedule.reserve = 1.5 * took + self._margin
        self.schedule.begin(rarely=took > self.schedule.seconds / 20)
        if self.schedule.loading > 0.5:
            share, whole = self.schedule.loading, self.schedule.seconds
            said = f"loading took {share:.0%} of {whole:.0f} s: too little is left for training"
            print(said, file=sys.stderr, flush=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        schedule = self.schedule
        before = int(CHECKPOINTS * schedule.place / schedule.steps)
        schedule.tick()
        control.should_save = int(CHECKPOINTS * schedule.place / schedule.steps) > before
        control.should_training_stop = schedule.ended
        self._stopped = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        took = time.monotonic() - self._stopped
        self.schedule.reserve = max(self.schedule.reserve, 1.25 * took + self._margin)
