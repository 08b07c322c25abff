"""CUDA graphs: a captured call is replayed without Python."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import torch

logger = logging.getLogger(__name__)
# PyTorch captures one graph at a time in a process.
_CAPTURING = threading.Lock()


class Graphs:
    """Captures calls on one device, as long as CUDA lets it.

    Attributes:
        refused: why a capture failed; nothing is captured any more then.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.refused = device, ""
        self._pool: Any = None
        self._stream: Any = None

    def capture(self, call: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """The graph of a call, which is not run; None where the capture is refused.

        The call must have run before in this process, so that its kernels are compiled. Other
        threads may use the device meanwhile, but not wait for all of it.
        """
        with _CAPTURING, torch.cuda.device(self.device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
                self._stream = torch.cuda.Stream(self.device)
            torch.cuda.current_blas_handle()  # this thread's: not to be made in a capture
            graph = torch.cuda.CUDAGraph()
            before = torch.cuda.current_stream()
            how = dict(pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
            try:
                with torch.cuda.graph(graph, **how):
                    call()
            except RuntimeError as error:
                torch.cuda.set_stream(before)  # PyTorch leaves this thread on the other one
                self.refused = f"{type(error).__name__}: {error}"
                logger.error("decode steps run without CUDA graphs, slowly: %s", self.refused)
                self.forget()
                return None
            return graph

    def forget(self) -> None:
        """Takes a new pool for later graphs: one whose graphs are all gone takes no others."""
        self._pool = None
