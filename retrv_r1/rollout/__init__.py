"""Rollouts for reinforcement learning: sampled by an engine, scored, and read again by a trainer.

``RetrvRollout`` is a ``rollout_func`` of TRL's ``GRPOTrainer``, and ``RetrvGRPOTrainer`` a trainer
whose policy sees exactly the rows that the rollouts saw.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from retrv_kernels.extras import install_command

if TYPE_CHECKING:
    from retrv_r1.rollout.rewards import FormatReward, MarginReward, ResultReward
    from retrv_r1.rollout.sampling import RetrvRollout
    from retrv_r1.rollout.task import Rollout, Task
    from retrv_r1.rollout.trainer import RetrvGRPOTrainer

_HOMES = {
    "FormatReward": "rewards",
    "MarginReward": "rewards",
    "ResultReward": "rewards",
    "RetrvGRPOTrainer": "trainer",
    "RetrvRollout": "sampling",
    "Rollout": "task",
    "Task": "task",
}
__all__ = [
    "FormatReward",
    "MarginReward",
    "ResultReward",
    "RetrvGRPOTrainer",
    "RetrvRollout",
    "Rollout",
    "Task",
]


def __getattr__(name: str) -> Any:
    """Imports a name when it is first used: only the trainer needs TRL."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("trl", "datasets"):
            raise
        message = f"{name} needs TRL: {install_command('rl')}"
        raise ModuleNotFoundError(message, name=error.name) from error
