"""CUDA graphs: captured calls that are replayed without Python."""

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
    """Captures calls on one device, until a capture fails.

    Attributes:
        refused: reason of the failure, or empty; after it nothing is captured.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.refused = device, ""
        self._pool: Any = None
        self._stream: Any = None

    def capture(self, call: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """Captures a call without running it; None if the capture fails.

        The call must have run before in this process, so that its kernels are compiled. Other
        threads may use the device meanwhile, but must not synchronize all of it.
        """
        with _CAPTURING, torch.cuda.device(self.device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
                self._stream = torch.cuda.Stream(self.device)
            torch.cuda.current_blas_handle()  # one a thread, which cannot be made in a capture
            graph = torch.cuda.CUDAGraph()
            before = torch.cuda.current_stream()
            how = dict(pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
            try:
                with torch.cuda.graph(graph, **how):
                    call()
            except RuntimeError as error:
                torch.cuda.set_stream(before)  # PyTorch leaves this thread on the capture's stream
                self.refused = f"{type(error).__name__}: {error}"
                logger.error("decode steps run without CUDA graphs, slowly: %s", self.refused)
                self.forget()
                return None
            return graph

    def forget(self) -> None:
        """Uses a new memory pool for later graphs: a pool whose graphs are all gone takes none."""
        self._pool = None
