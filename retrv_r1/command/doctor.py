"""The command ``doctor``: what this installation can do, what it lacks, and how to add it."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from safetensors import SafetensorError, safe_open

import retrv_r1
from retrv_kernels import native, ops
from retrv_kernels.extras import install_command
from retrv_r1.devices import device_of, dtype_of

DISTRIBUTION = "retrv-r1"
CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"

# Optional sources of `data pictographs`: their folders and what they add.
DEBIAN_DATA = {
    "unicode-cldr-core": (Path("/usr/share/unicode/cldr/common"), "keywords and groups"),
    "wordnet-base": (Path("/usr/share/wordnet"), "glosses"),
}

EXTRA_USES = {
    "data": "build the pictograph data set",
    "eval": "compute retrieval metrics",
    "train": "train the model",
    "rl": "train it with rewards",
    "teacher": "have another model write chains of thought",
    "serve": "serve rankings over HTTP",
    "cache": "keep features of items on disk",
    "langchain": "rerank in LangChain",
    "llama-index": "rerank in LlamaIndex",
    "haystack": "rerank in Haystack",
    "rerankers": "rerank through the library rerankers",
    "sglang": "generate with SGLang",
    "gpu": "run Triton kernels",
    "xformers": "use xFormers attention",
    "bench": "run the benchmarks",
    "dev": "work on this project",
}


def report() -> dict[str, Any]:
    """All that :func:`render` shows, as JSON values.

    ``problems`` lists what is broken and how to fix it; absent optional parts are not problems.
    """
    problems: list[str] = []
    found, sglang = _sglang()
    return {
        "versions": _versions(problems),
        "cpu": _cpu(),
        "gpus": _gpus(),
        "default": _default(),
        "kernels": _kernels(problems),
        "engines": {
            "local": "embedded, always available",
            "plain": "transformers, always available",
            "sglang": sglang,
        },
        "checkpoints": _checkpoints(CHECKPOINTS, problems),
        "extras": _extras(sglang=found),
        "data": _data_sources(),
        "problems": problems,
    }


def render(report: dict[str, Any], console: Console) -> None:
    """Prints a report."""
    for title, rows in _sections(report):
        table = Table.grid(padding=(0, 2))
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(f"  {escape(name)}", escape(value))
        console.print(f"[bold]{title}[/]")
        console.print(table)
    for problem in report["problems"]:
        console.print(f"[red]problem:[/] {escape(problem)}")
    if not report["problems"]:
        console.print("[green]no problems found[/]")


def _versions(problems: list[str]) -> dict[str, str]:
    try:
        installed = importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        installed = "not installed"
        problems.append(f"{DISTRIBUTION} runs from its sources: pip install -e . in their folder")
    else:
        if installed != retrv_r1.__version__:
            problems.append(
                f"the sources are version {retrv_r1.__version__}, the install {installed}: "
                "install again"
            )
    return {
        DISTRIBUTION: installed,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy")},
    }


def _cpu() -> dict[str, Any]:
    lines: list[str] = []
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "name": next(names, "") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.backends.cpu.get_cpu_capability(),
    }


def _gpus() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [
        {
            "name": gpu.name,
            "memory_gib": round(gpu.total_memory / 2**30, 1),
            "compute_capability": f"{gpu.major}.{gpu.minor}",
        }
        for gpu in found
    ]


def _default() -> dict[str, str]:
    """Default device of models, and default dtype of their weights."""
    device = device_of()
    dtype = dtype_of(None, device)
    named = "the checkpoint's" if dtype is None else str(dtype).removeprefix("torch.")
    return {"device": str(device), "dtype": named}


def _kernels(problems: list[str]) -> dict[str, Any]:
    """The native module and the implementation of every op; a broken module is a problem."""
    try:
        module = native.find()
        isas = native.isas()
        devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
        choices = [choice for device in devices for choice in ops.explain(device)]
    except (ImportError, RuntimeError, ValueError) as error:
        problems.append(f"kernels: {error}")
        return {"native": None, "isas": [], "ops": []}
    return {
        "native": module and module.__file__,
        "isas": list(isas),
        "ops": [
            {
                "op": choice.op,
                "device": choice.device,
                "implementation": choice.implementation.name,
                "because": choice.because,
                "passed_over": dict(choice.passed_over),
            }
            for choice in choices
        ],
    }


def _sglang() -> tuple[bool, str]:
    """Whether SGLang was found, and where it is or how to add it."""
    from retrv_engine import EngineMissing
    from retrv_engine.sglang.process import find_python

    try:
        return True, f"a server run by {find_python()}"
    except EngineMissing as error:
        return False, str(error)


def _checkpoints(root: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The shipped checkpoints, with parameters counted from their files' headers."""
    found = []
    for path in sorted(config.parent for config in root.glob("*/config.json")):
        try:
            json.loads((path / "config.json").read_text(encoding="utf-8"))
            parameters = sum(map(_parameters, path.glob("*.safetensors")))
            if not parameters:
                raise ValueError("no weights")
        except (OSError, ValueError, SafetensorError) as error:
            problems.append(
                f"checkpoint {path.name} is damaged ({error}); reinstall {DISTRIBUTION}"
            )
            continue
        found.append({"name": path.name, "path": str(path), "parameters": parameters})
    return found


def _parameters(path: Path) -> int:
    """Parameters in a safetensors file, from its header alone."""
    with safe_open(path, framework="numpy") as tensors:
        shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
    return sum(map(math.prod, shapes))


def _extras(*, sglang: bool) -> dict[str, dict[str, Any]]:
    """The requirements of each extra that this environment lacks.

    Args:
        sglang: whether an environment with SGLang was found, which may be one of its own.
    """
    try:
        metadata = importlib.metadata.metadata(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return {}
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist") or []]
    result = {}
    for extra in metadata.get_all("Provides-Extra") or []:
        marked = [(r, r.marker.evaluate) for r in requirements if r.marker]
        wanted = [r for r, holds in marked if holds({"extra": extra}) > holds({"extra": ""})]
        if sglang and extra == "sglang":
            wanted = []
        result[extra] = {
            "use": EXTRA_USES.get(extra, f"add what {extra!r} brings"),
            "missing": [f"{r.name}{r.specifier}" for r in wanted if not _satisfied(r)],
            "install": install_command(extra),
        }
    return result


def _satisfied(requirement: Requirement) -> bool:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return requirement.specifier.contains(version, prereleases=True)


def _data_sources() -> dict[str, dict[str, Any]]:
    """Optional sources of `data pictographs` beyond the data extra."""
    sources = [("npm", shutil.which("npm") is not None, "most picture styles")]
    sources += [(name, path.is_dir(), gives) for name, (path, gives) in DEBIAN_DATA.items()]
    return {
        name: {"gives": gives, "present": present, "install": f"apt install {name}"}
        for name, present, gives in sources
    }


def _sections(report: dict[str, Any]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    cpu, kernels, default = report["cpu"], report["kernels"], report["default"]
    yield "versions", list(report["versions"].items())
    yield (
        "hardware",
        [
            ("cpu", f"{cpu['name']}, {cpu['cores']} cores, {cpu['torch']}"),
            ("threads", str(cpu["threads"])),
            *((f"gpu {i}", _gpu_line(gpu)) for i, gpu in enumerate(report["gpus"])),
            *([] if report["gpus"] else [("gpu", "none that PyTorch can use")]),
            ("default", f"{default['device']}, dtype: {default['dtype']}"),
        ],
    )
    yield (
        "kernels",
        [
            ("native", kernels["native"] or "absent"),
            *([("runs", ", ".join(kernels["isas"]))] if kernels["isas"] else []),
            *((op["op"], _op_line(op)) for op in kernels["ops"]),
        ],
    )
    yield "engines", list(report["engines"].items())
    yield (
        "checkpoints",
        [(c["name"], f"{c['parameters']:,} parameters, {c['path']}") for c in report["checkpoints"]]
        or [("none", "no checkpoint comes with this install")],
    )
    yield "extras", [(name, _extra_line(extra)) for name, extra in report["extras"].items()]
    yield (
        "data sources",
        [
            (name, f"{'present' if source['present'] else source['install']} ({source['gives']})")
            for name, source in report["data"].items()
        ],
    )


def _gpu_line(gpu: dict[str, Any]) -> str:
    return f"{gpu['name']}, {gpu['memory_gib']} GiB, capability {gpu['compute_capability']}"


def _op_line(op: dict[str, Any]) -> str:
    rest = "".join(f"; not {name}: {reason}" for name, reason in op["passed_over"].items())
    return f"{op['implementation']} on {op['device']} ({op['because']}){rest}"


def _extra_line(extra: dict[str, Any]) -> str:
    if not extra["missing"]:
        return f"installed: {extra['use']}"
    return f"to {extra['use']}: {extra['install']}   (lacks {', '.join(extra['missing'])})"
