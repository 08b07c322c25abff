"""Several processes that train one model on a CPU, each on batches of its own.

Many operations of a small model are too short for two threads, which then wait for one another
(docs/LOG.md). Processes of one thread each meet once a step, to average gradients.
"""

from __future__ import annotations

import math
import mmap
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType

import torch
from torch import Tensor, nn

from retrv_r1.types import RetrvError

WATCH = 1.0
"""Seconds between two looks of a process at whether its parent lives."""


class PeersError(RetrvError, RuntimeError):
    """Another process of the training run has died, or this system cannot fork."""


class Peers:
    """Processes that average their gradients; used as a context, which begins with the fork.

    All of them have the same weights at the fork, and the same averages at every step, so they stay
    equal. What the model counts without gradients (statistics of batch norms) is each one's own.

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
        self._watchers: list[threading.Thread] = []
        self._failed = False
        if count == 1:
            return
        self._sizes = [p.numel() for p in self.parameters]
        self._shared = _shared_zeros(count, sum(self._sizes))
        self._given = _shared_zeros(count, len(self.parameters))
        self._meeting = multiprocessing.get_context("fork").Barrier(count)

    def __enter__(self) -> Peers:
        parent = os.getpid()
        children: list[int] = []
        for rank in range(1, self.count):
            try:
                child = os.fork()
            except OSError as error:
                for one in children:
                    os.kill(one, signal.SIGKILL)
                    os.waitpid(one, 0)
                raise PeersError(f"no process for loop.processes: {error}; free memory") from error
            if child == 0:
                self.rank, children = rank, []
                self._watch(self._end_with, parent)
                break
            children.append(child)
        for child in children:
            self._watch(self._wait_for, child)
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
            # What is wrong with all of them, the parent says.
            if isinstance(error, Exception) and not isinstance(error, RetrvError):
                traceback.print_exception(error)
            os._exit(0 if error is None else 1)
        for watcher in self._watchers:
            watcher.join()
        if self._failed and error is None:
            raise self._death()

    @torch.no_grad()
    def average_gradients(self) -> None:
        """Replaces every gradient by the mean of all processes'; a missing one counts as zero.

        A parameter without a gradient in any of them keeps none.

        Raises:
            PeersError: another process has died.
        """
        if self.count == 1:
            return
        own = self._shared[self.rank].split(self._sizes)
        for n, (part, parameter) in enumerate(zip(own, self.parameters, strict=True)):
            self._given[self.rank, n] = parameter.grad is not None
            if parameter.grad is None:
                part.zero_()
            else:
                part.copy_(parameter.grad.reshape(-1))
        self._meet()
        means, given = self._shared.mean(0).split(self._sizes), self._given.any(0).tolist()
        self._meet()
        for mean, has, parameter in zip(means, given, self.parameters, strict=True):
            parameter.grad = mean.view_as(parameter) if has else None

    def _meet(self) -> None:
        try:
            self._meeting.wait()
        except threading.BrokenBarrierError:
            raise self._death() from None

    def _death(self) -> PeersError:
        return PeersError(
            f"another of the {self.count} training processes has ended: see its message above, or "
            "free memory, and run the same command again"
        )

    # A process that is killed comes to no meeting; the others must not wait for it.

    def _watch(self, look: Callable[[int], None], process: int) -> None:
        self._watchers.append(threading.Thread(target=look, args=(process,), daemon=True))
        self._watchers[-1].start()

    def _wait_for(self, child: int) -> None:
        """Waits for a child's end; a failure breaks up the meeting."""
        if os.waitpid(child, 0)[1]:
            self._failed = True
            self._meeting.abort()

    def _end_with(self, parent: int) -> None:
        """Ends this process when its parent has ended."""
        while os.getppid() == parent:
            time.sleep(WATCH)
        os._exit(1)


def _shared_zeros(*shape: int) -> Tensor:
    """Zeros, float32, in memory that processes share after a fork."""
    memory = mmap.mmap(-1, max(1, 4 * math.prod(shape)))
    return torch.frombuffer(memory, dtype=torch.float32, count=math.prod(shape)).view(shape)
