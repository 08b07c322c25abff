"""Stand-ins for PyTorch's and Triton's CUDA calls: streams, events, graphs, launches."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from emulated_device import EmulatedDevice
from emulated_tensor import DEVICE, Emulated, Mismatch, raw_of, tensors_in
from torch import Tensor
from torch.overrides import TorchFunctionMode

from retrv_kernels import registry
from retrv_r1.model import tower

FROM_HOST = (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor, Tensor.new_tensor)

# These Python functions ask the driver first; the operations do not.
GUARDED = {
    Tensor.__invert__: torch.ops.aten.bitwise_not,
    Tensor.copy_: torch.ops.aten.copy_,
    Tensor.nonzero: torch.ops.aten.nonzero,
    torch.nonzero: torch.ops.aten.nonzero,
}


@contextlib.contextmanager
def emulate(free: int = 2**27) -> Iterator[EmulatedDevice]:
    """An emulated device, in this context and thread.

    Args:
        free: bytes of memory that it reports as free.
    """
    device = EmulatedDevice()
    torch._C._ensureCUDADeviceGuardSet()
    with contextlib.ExitStack() as stack:
        for name, value in _cuda(device, free).items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(_triton(device))
        stack.enter_context(mock.patch.object(tower, "varlen_attn", _varlen(device)))
        stack.enter_context(Calls(device))
        stack.enter_context(device)
        yield device


def _cuda(device: EmulatedDevice, free: int) -> dict[str, Any]:
    """Stand-ins for names of `torch.cuda`."""

    class Stream:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def __enter__(self) -> Stream:
            return self

        def __exit__(self, *_: object) -> None: ...

        def wait_stream(self, _: Any) -> None: ...

        def wait_event(self, _: Any) -> None: ...

        def record_event(self, event: Any = None) -> Any:
            return event or Event()

        def synchronize(self) -> None:
            device.wait("synchronize")

    class Event:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def record(self, _: Any = None) -> None: ...

        def wait(self, _: Any = None) -> None: ...

        def query(self) -> bool:
            return True

        def synchronize(self) -> None:
            device.wait("synchronize")

    class Graph:
        """Runs again what it saw, over the same memory."""

        def __init__(self, *_: Any, **__: Any) -> None:
            self.tape: list[Callable[[], None]] = []

        def replay(self) -> None:
            device.activity.launches["graph"] += 1
            for step in self.tape:
                step()

        def pool(self) -> tuple[int, int]:
            return 0, 0

        def reset(self) -> None:
            self.tape.clear()

        @contextlib.contextmanager
        def captured(self, *_: Any, **__: Any) -> Iterator[None]:
            device.tape = self.tape
            try:
                with device.capturable():
                    yield
            finally:
                device.tape = None

    stream = Stream()
    return {
        "_lazy_init": lambda: None,
        "CUDAGraph": Graph,
        "Event": Event,
        "Stream": Stream,
        "current_blas_handle": lambda: 0,
        "current_stream": lambda *_: stream,
        "device": lambda _: contextlib.nullcontext(),
        "device_of": lambda _: contextlib.nullcontext(),
        "graph": Graph.captured,
        "graph_pool_handle": lambda: (0, 0),
        "is_current_stream_capturing": lambda: device.tape is not None,
        "mem_get_info": lambda *_: (free, free),
        "set_stream": lambda _: None,
        "stream": lambda _: contextlib.nullcontext(),
        "synchronize": lambda *_: device.wait("synchronize"),
    }


def _varlen(device: EmulatedDevice) -> Callable[..., Tensor]:
    """PyTorch's attention over ragged batches, which CPUs lack."""

    def attend(*tensors: Any, scale: float) -> Tensor:
        query, key, value, offsets, *_ = raw_of(tensors)
        cuts = offsets.diff().tolist()
        parts = zip(*(x.transpose(0, 1).split(cuts, 1) for x in (query, key, value)), strict=True)
        attention = torch.nn.functional.scaled_dot_product_attention
        out = [attention(q, k, v, scale=scale) for q, k, v in parts]
        device.activity.launches["varlen_attn"] += 1
        return device.put(torch.cat(out, 1).transpose(0, 1))

    return attend


@contextlib.contextmanager
def _triton(device: EmulatedDevice) -> Iterator[None]:
    """Kernels are launched in name only; what they would have written comes from references."""
    from triton.runtime.jit import JITFunction

    def launch(function: Any, *args: Any, grid: Any, warmup: bool = False, **options: Any) -> None:
        on_host = [x for x in tensors_in(args) if not isinstance(x, Emulated)]
        if on_host:
            shapes = [tuple(x.shape) for x in on_host]
            raise Mismatch(f"kernel {function.__name__}: {shapes} on the CPU")
        device.activity.launches[f"triton {function.__name__}"] += 1
        device.activity.compiled.add((function.__name__, _compile_key(function, args, options)))

    def stand_in(run: Callable[..., Any], reference: Callable[..., Any]) -> Callable[..., Any]:
        def both(*arguments: Any) -> Any:
            run(*arguments)
            there = [x for x in tensors_in(arguments) if isinstance(x, Emulated)]
            raw = raw_of(arguments)
            result = reference(*raw)
            device.record(lambda: reference(*raw), result)
            return device.wrap(result, there)

        return both

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(JITFunction, "run", launch))
        for choices in registry.OPS.values():
            if choices[0].name == "triton":
                run = stand_in(choices[0].run, choices[-1].run)
                stack.enter_context(mock.patch.dict(choices[0].__dict__, {"run": run}))
        yield


def _compile_key(function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """What Triton compiles a kernel anew for: compile-time values, types, 1, divisibility by 16."""
    named = dict(zip((one.name for one in function.params), args, strict=False))
    known = {one.name: one for one in function.params}
    key = []
    for name, value in itertools.chain(named.items(), options.items()):
        parameter = known.get(name)
        plain = parameter is None or parameter.is_constexpr
        key.append((name, str(value) if plain else _kind(value, parameter.do_not_specialize)))
    return tuple(sorted(key))


def _kind(value: Any, loosely: bool) -> Any:
    """All that is compiled in of a run-time argument."""
    if isinstance(value, tuple):
        return tuple(_kind(one, loosely) for one in value)
    if isinstance(value, Tensor):
        return str(value.dtype), value.data_ptr() % 16 == 0
    if isinstance(value, bool) or not isinstance(value, int):
        return type(value).__name__
    narrow = -(2**31) <= value < 2**31
    if loosely:
        return narrow
    return narrow, value == 1, value % 16 == 0


class Calls(TorchFunctionMode):
    """Replaces Python functions that ask for a real device before they reach an operation."""

    def __init__(self, device: EmulatedDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        args = tuple(map(_numbered, args))
        kwargs = {key: _numbered(value) for key, value in (kwargs or {}).items()}
        if func is Tensor.cuda:
            return args[0].to(DEVICE, non_blocking=kwargs.get("non_blocking", False))
        if func in GUARDED:
            return GUARDED[func](*args, **kwargs)
        if func in (Tensor.pin_memory, Tensor.is_pinned):
            if func is Tensor.is_pinned:
                return not isinstance(args[0], Emulated) and self.device.is_pinned(args[0])
            return self.device.pin(args[0].clone())
        if func not in FROM_HOST:
            return func(*args, **kwargs)
        target, pinned = kwargs.pop("device", None), kwargs.pop("pin_memory", False)
        if func is Tensor.new_tensor:
            target = target or args[0].device
            func, args = torch.tensor, args[1:]
        if isinstance(args[0], Emulated):
            return args[0].to(target, **kwargs)
        made = func(*args, **kwargs)
        made = self.device.pin(made) if pinned else made
        return made if target is None else made.to(target)


def _numbered(value: Any) -> Any:
    """A device with its index; without one PyTorch would ask the driver for the current device."""
    if isinstance(value, str) and value.split(":")[0] == "cuda":
        return DEVICE
    return DEVICE if isinstance(value, torch.device) and value.type == "cuda" else value
