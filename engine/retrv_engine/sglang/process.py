"""The server's process: started on a free port, watched, and ended with our process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from retrv_engine.base import EngineMissing
from retrv_engine.sglang.wire_format import STOP_WITH_STDIN
from retrv_kernels.extras import install_command

CPU_PYTHON = Path(sys.prefix) / "sglang" / "bin" / "python"
"""Interpreter of the environment that ``make sglang-cpu`` makes. SGLang has one of its own there,
since the torchvision that it needs breaks the import of transformers beside a CPU's PyTorch."""
LOG_LINES = 12
LOG_BYTES = 64 * 2**10
SECONDS_TO_END = 10.0


class ServerProcess:
    """A server on a free port of this machine, with its workers.

    Args:
        checkpoint: folder of a checkpoint, or its id on a hub.
        dtype: dtype of the weights, such as "float32".
        arguments: further arguments of SGLang's server, by name.
        python: interpreter of an environment with SGLang, or None to look for one.
    Attributes:
        version: version of its weights, by which its answers are told from another server's.
    Raises:
        EngineMissing: SGLang is not installed, or the interpreter does not run; the message says
            what to do.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        dtype: str,
        arguments: Mapping[str, Any],
        python: Path | None,
    ) -> None:
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        python = python or find_python()
        handle, log = tempfile.mkstemp(prefix="retrv-sglang-", suffix=".log")
        self.log = Path(log)
        self._reported = False
        own = {"model_path": checkpoint, "dtype": dtype, "host": "127.0.0.1", "port": port}
        own |= {"weight_version": uuid.uuid4().hex}
        own |= {name.replace("-", "_"): value for name, value in arguments.items()}
        self.version = str(own["weight_version"])
        words = [str(python), "-m", "retrv_engine.sglang.worker.server", STOP_WITH_STDIN]
        try:
            with os.fdopen(handle, "wb") as output:
                self._process = subprocess.Popen(
                    [*words, *_words(own)],
                    env=_environment(),
                    stdin=subprocess.PIPE,  # closed when we end, which stops the server
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            self.log.unlink()
            raise EngineMissing(f"{python} does not run ({error}): name another python") from error

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self, seconds: float) -> bool:
        """Waits for the server to end by itself; False if it does not."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self.ended

    def exit_report(self) -> str:
        """Exit status and the last lines of the log, which is kept from now on."""
        self._reported = True
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - LOG_BYTES))
                lines = log.read(LOG_BYTES).decode("utf-8", "replace").splitlines()
        except OSError as error:  # somebody else has deleted it
            lines = [str(error)]
        tail = "\n".join(f"  {line}" for line in lines[-LOG_LINES:])
        return f"exit status {self._process.poll()}; the end of {self.log}:\n{tail}"

    def end(self) -> None:
        """Ends the server and its workers, and deletes the log unless a report has named it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self.wait(SECONDS_TO_END)
        with suppress(ProcessLookupError):  # whoever is left of its session
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if not self._reported:
            self.log.unlink(missing_ok=True)


def find_python() -> Path:
    """Interpreter of an environment with SGLang.

    Raises:
        EngineMissing: there is none; the message says how to install it.
    """
    if CPU_PYTHON.exists():
        return CPU_PYTHON
    paths = [Path(entry) / "sglang" / "version.py" for entry in sys.path]
    if any(path.exists() for path in paths):
        return Path(sys.executable)
    how = install_command("sglang") if torch.cuda.is_available() else "make sglang-cpu"
    raise EngineMissing(
        f"SGLang is not installed: {how}, or name the interpreter of an environment that has it "
        "(SGLangConfig(python=…)), or a running server (SGLangConfig(url=…))"
    )


def _words(arguments: Mapping[str, Any]) -> list[str]:
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
    """Our environment variables; the other interpreter finds our package by ``PYTHONPATH``."""
    here = str(Path(__file__).parents[2])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
