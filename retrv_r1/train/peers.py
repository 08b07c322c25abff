"""Several processes that train one model on a CPU, each on batches of its own.

Many operations of a small model are too short for two threads: half of the second thread's time was
spent waiting (docs/LOG.md). Processes of one thread each meet once a step, to average gradients.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import threading
import traceback
from types import TracebackType

import torch
from torch import nn

from retrv_r1.types import RetrvError

PATIENCE = 900.0
"""Seconds that a process waits for the others before it takes them for dead."""


class PeersError(RetrvError, RuntimeError):
    """Another process of the training run has died, or this system cannot fork."""


class Peers:
    """Processes that average their gradients; used as a context, which begins with the fork.

    All of them have the same weights at the fork, and the same averages at every step, so they stay
    equal. Whatever the model counts without gradients (statistics of batch norms) is each one's own.

    Args:
        model: the model; its parameters with gradients are trained.
        count: number of processes, this one included.
    Attributes:
        rank: number of this process; 0 is the one that there was before the fork.
    """

    def __init__(self, model: nn.Module, count: int) -> None:
        if count > 1 and "fork" not in multiprocessing.get_all_start_methods():
            raise PeersError("this system cannot fork processes: set loop.processes to 1")
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.count, self.rank = count, 0
        self._children: list[int] = []
        if count == 1:
            return
        numbers = sum(p.numel() for p in self.parameters)
        memory = mmap.mmap(-1, 4 * numbers * count)  # shared with the processes of the fork
        self._shared = torch.frombuffer(memory, dtype=torch.float32).view(count, numbers)
        self._meeting = multiprocessing.get_context("fork").Barrier(count)

    def __enter__(self) -> Peers:
        for rank in range(1, self.count):
            if (child := os.fork()) == 0:
                self.rank, self._children = rank, []
                break
            self._children.append(child)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and self.count > 1:
            self._meeting.abort()
        if self.rank:  # ends here, without the parent's cleanup
            if isinstance(error, Exception) and not isinstance(error, PeersError):
                traceback.print_exception(error)
            os._exit(0 if error is None else 1)
        for child in self._children:
            os.waitpid(child, 0)

    @torch.no_grad()
    def average_gradients(self) -> None:
        """Replaces every gradient by the mean of all processes'; a missing one counts as zero.

        Raises:
            PeersError: another process has died.
        """
        if self.count == 1:
            return
        own = self._shared[self.rank].split([p.numel() for p in self.parameters])
        for part, parameter in zip(own, self.parameters, strict=True):
            if parameter.grad is None:
                part.zero_()
            else:
                part.copy_(parameter.grad.reshape(-1))
        self._meet()
        mean = self._shared.mean(0)
        self._meet()
        for part, parameter in zip(mean.split([len(p) for p in own]), self.parameters, strict=True):
            parameter.grad = part.view_as(parameter)

    def _meet(self) -> None:
        try:
            self._meeting.wait(PATIENCE)
        except threading.BrokenBarrierError:
            raise PeersError(
                f"another of the {self.count} training processes has ended: see its message above, "
                "or free memory, and run the same command again"
            ) from None

