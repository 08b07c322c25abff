"""What a training stage is: batches, a loss, a result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from retrv_r1.train.build import Setup
from retrv_r1.train.schedule import Schedule

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class RunStats:
    """What a finished run did.

    Attributes:
        steps: optimizer steps of this process.
        samples: pairs or lists of this process.
        seconds: seconds of training in all, and of its parts. A GPU works asynchronously: its time
            shows where the host waits for it, mostly in the forward pass, which reads the losses.
    """

    steps: int
    samples: int
    seconds: dict[str, float]


class Stage(ABC):
    """One training stage.

    A stage is a subclass in a file of its own, and a line in :data:`retrv_r1.train.STAGES`. Its
    constructor takes a :class:`Setup` and makes ``model`` and ``processor``.

    Attributes:
        Config: dataclass of the stage's options, the section ``stage`` of its YAML file.
        model: the model that is trained.
        processor: preprocessing that is saved beside the model.
        schedule: schedule by time if the run has a time limit; None for one by steps.
        stats: steps, samples and seconds of the run, once it is finished.
    """

    Config: ClassVar[type]
    config: Any
    model: PreTrainedModel
    processor: Any
    schedule: Schedule | None = None
    stats: RunStats | None = None

    def __init__(self, setup: Setup) -> None:
        self.name = setup.config.name
        self.config, self.seed = setup.config.stage, setup.config.loop.seed
        self._auxiliary: list[str] = []

    def add_auxiliary(self, name: str, module: M) -> M:
        """Makes a module part of the model while it trains.

        Optimizer and checkpoints include it; the result does not.
        """
        self.model.add_module(name, module)
        self._auxiliary.append(name)
        return module

    @abstractmethod
    def batch(self, step: int) -> dict[str, Any]:
        """The batch of a step, on the CPU: a function of the step and its position alone.

        It must touch neither the model nor a GPU, because other processes call it.
        """

    def position(self, step: int) -> float:
        """Position of a step in the schedule, in steps of the configuration."""
        return step if self.schedule is None else self.schedule.position

    @abstractmethod
    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch on the model's device, and metrics to log.

        The metric ``tokens`` counts rows and patches processed, ``samples`` pairs or lists.
        """

    def validate(self) -> dict[str, float]:
        """Metrics on held-out data, logged at every checkpoint; none by default."""
        return {}

    def save(self, out: Path) -> None:
        """Writes the complete result, which the next stage can load."""
        while self._auxiliary:
            delattr(self.model, self._auxiliary.pop())
        self.model.save_pretrained(out)
        self.processor.save_pretrained(out)
