"""A server of our own: started, watched, ended with whoever started it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from retrv_engine.base import EngineMissing
from retrv_engine.sglang.worker.server import WATCH

MADE = Path(sys.prefix) / "sglang" / "bin" / "python"
"""Where ``make sglang-cpu`` puts SGLang: its torchvision does not load beside a CPU's PyTorch, so
that what we import ourselves would fail in the same environment."""
LAST_LINES = 12
SECONDS_TO_END = 10.0


class ServerProcess:
    """A server on a free port of this machine, with its workers.

    Args:
        checkpoint: a folder, or the id of a hub.
        dtype: of the weights, "float32".
        arguments: of SGLang's server, by its names.
        python: of the environment that SGLang is in, or None to look for it.
    Raises:
        EngineMissing: SGLang is nowhere; the message says how to install it.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        dtype: str,
        arguments: Mapping[str, Any],
        python: Path | None,
    ) -> None:
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        python = python or find_python()
        handle, log = tempfile.mkstemp(prefix="retrv-sglang-", suffix=".log")
        self.log = Path(log)
        own = {"model_path": checkpoint, "dtype": dtype, "host": "127.0.0.1", "port": self.port}
        with os.fdopen(handle, "wb") as written:
            self._process = subprocess.Popen(
                [
                    python,
                    "-m",
                    "retrv_engine.sglang.worker.server",
                    WATCH,
                    *_flags({**own, **arguments}),
                ],
                env=_environment(),
                stdin=subprocess.PIPE,  # its end tells the server that we are gone
                stdout=written,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def obituary(self) -> str:
        """How it ended, and the last lines of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = "\n".join(f"  {line}" for line in lines[-LAST_LINES:])
        return f"exit status {self._process.poll()}; the end of {self.log}:\n{said}"

    def end(self) -> None:
        """Ends it with its workers; its log stays if it had ended by itself."""
        by_itself = self.ended
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if not by_itself:
            self.log.unlink(missing_ok=True)


def find_python() -> Path:
    """The interpreter of an environment with SGLang.

    Raises:
        EngineMissing: there is none; the message says what to do.
    """
    if MADE.exists():
        return MADE
    paths = [Path(entry) / "sglang" / "version.py" for entry in sys.path]
    if any(path.exists() for path in paths):
        return Path(sys.executable)
    how = "pip install 'retrv-r1[sglang]'" if torch.cuda.is_available() else "make sglang-cpu"
    raise EngineMissing(
        f"SGLang is not installed: {how}, or name the python of an environment that has it "
        "(SGLangConfig(python=…)), or a server that runs already (SGLangConfig(url=…))"
    )


def _flags(arguments: Mapping[str, Any]) -> list[str]:
    """``{"tp_size": 2, "enable_metrics": True}`` as words of a command line."""
    words: list[str] = []
    for name, value in arguments.items():
        if value is False or value is None:
            continue
        words.append("--" + name.replace("_", "-"))
        if isinstance(value, list | tuple):
            words += map(str, value)
        elif value is not True:
            words.append(str(value))
    return words


def _environment() -> dict[str, str]:
    """Ours, with this package where the other environment may not have it."""
    here = str(Path(__file__).parents[2])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
