"""Lets SGLang 0.5.20 be imported and run on a machine without a GPU.

Its modules look up CUDA operators when they are imported. Those are declared here, without an
implementation: on a CPU none is called.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any
from unittest import mock

import torch

_LIBRARIES: list[torch.library.Library] = []  # kept: definitions live as long as their library


def install() -> None:
    """Makes ``import sglang`` work in this process; does nothing on a machine with a GPU."""
    if torch.cuda.is_available() or _LIBRARIES:
        return
    os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
    _declare_torchvision()
    _declare_kernels()
    if importlib.util.find_spec("triton") is None:
        _install_triton_stub()


def _declare_torchvision() -> None:
    """Two operators that torchvision describes at import, and that only its CUDA build has."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    _LIBRARIES.append(library)
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _declare_kernels() -> None:
    """The package ``sgl_kernel``, and operators that model files name at import."""
    library = torch.library.Library("sgl_kernel", "FRAGMENT")
    _LIBRARIES.append(library)
    for name in (
        "fused_sigmoid_mul_cpu",
        "fused_qk_gemma_rmsnorm_cpu",
        "fused_qk_gemma_rmsnorm_with_gate_cpu",
        "fused_qkvzba_split_reshape_cat_contiguous_cpu",
    ):
        if not hasattr(torch.ops.sgl_kernel, name):
            library.define(f"{name}(Tensor x, Tensor y) -> Tensor")
    if importlib.util.find_spec("sgl_kernel") is None:
        module: Any = types.ModuleType("sgl_kernel", "Operators that need a GPU; none is here.")
        module.__spec__ = ModuleSpec("sgl_kernel", None)
        module.__path__ = []
        module.__version__ = "0.0.0"
        module.__getattr__ = _missing_operator
        sys.modules["sgl_kernel"] = module


def _missing_operator(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def operator(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(
            f"sgl_kernel.{name} needs a GPU: give the server arguments that do without it, such as "
            "--attention-backend torch_native"
        )

    return operator


def _install_triton_stub() -> None:
    """SGLang's own stub of Triton, made for macOS; it is loaded by path, as if this were a Mac."""
    found = importlib.util.find_spec("sglang")
    if found is None or found.origin is None:
        raise ImportError("SGLang is not installed: make sglang-cpu")
    path = pathlib.Path(found.origin).parent / "_platform_stubs.py"
    spec = importlib.util.spec_from_file_location("_sglang_stubs", path)
    assert spec is not None and spec.loader is not None
    stubs: Any = importlib.util.module_from_spec(spec)
    sys.modules["_sglang_stubs"] = stubs
    spec.loader.exec_module(stubs)
    stubs.sys = types.SimpleNamespace(
        platform="darwin", modules=sys.modules, meta_path=sys.meta_path
    )
    stubs.platform = types.SimpleNamespace(machine=lambda: "arm64")
    stubs._patch_non_blocking = lambda: None
    with mock.patch.object(torch.backends.mps, "is_available", lambda: True):
        stubs.install_platform_stubs()
