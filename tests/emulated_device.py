"""A GPU that is not there: CPU tensors that say they are on ``cuda:0``, and books of their cost.

The CPU computes, so results are right; what a GPU would refuse or wait for shows. A tensor of the
wrong device raises; launches, copies to the device and waits for it are counted, with the line that
caused them. Nothing can be learned here of speed, nor of kernels: Triton's are launched in name
only (:mod:`emulated_cuda`), and their references compute.
"""

from __future__ import annotations

import contextlib
import functools
import linecache
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from retrv_kernels import registry

DEVICE = torch.device("cuda", 0)
BASE = 1 << 56  # between an address on the CPU and one on the device
# One kernel each, though PyTorch can take them apart.
WHOLE = {"argsort", "conv3d", "cross_entropy_loss", "einsum", "layer_norm", "linear", "matmul"}
WHOLE |= {"rms_norm", "scaled_dot_product_attention", "where"}
# Nothing is launched for them: they take memory, or look at it in another way.
FREE = {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# How large their results are depends on what is on the device.
SIZED_BY_VALUES = {"_unique2", "bincount", "masked_select", "nonzero", "repeat_interleave"}
SIZED_BY_VALUES |= {"unique_consecutive", "unique_dim"}
FROM_HOST = (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor, Tensor.new_tensor)

# Their calls from Python ask the driver first; the operations do not.
GUARDED = {
    Tensor.__invert__: torch.ops.aten.bitwise_not,
    Tensor.copy_: torch.ops.aten.copy_,
    Tensor.nonzero: torch.ops.aten.nonzero,
    torch.nonzero: torch.ops.aten.nonzero,
}


class Mismatch(RuntimeError):
    """Tensors of two devices met where CUDA takes those of one."""


class NotCapturable(RuntimeError):
    """The capture of a CUDA graph would have refused this."""


@dataclass
class Books:
    """What was asked of the device, by what and where.

    Attributes:
        launches: kernels started, by name; the replay of a graph is one.
        copies: to the device.
        waits: for the device, by copies from it too.
        results: copies to pinned memory, which nobody waits for.
        compiled: Triton's kernels with all that a compile depends on.
    """

    launches: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    results: Counter[str] = field(default_factory=Counter)
    compiled: set[tuple[str, Any]] = field(default_factory=set)


class Emulated(Tensor):
    """A tensor on the device; ``raw`` is the one on the CPU that holds its numbers."""

    raw: Tensor
    owner: EmulatedDevice
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: Tensor, owner: EmulatedDevice) -> Emulated:
        self = Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            layout=raw.layout,
            device=DEVICE,
        )
        self.raw, self.owner = raw, owner
        return self

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Emulated({self.raw})"

    def data_ptr(self) -> int:
        """Not where its memory is on the CPU: what was kept of a module there must not be found."""
        return self.raw.data_ptr() + BASE

    def __deepcopy__(self, memo: dict[int, Any]) -> Emulated:
        if id(self) not in memo:
            memo[id(self)] = Emulated(self.raw.clone(), self.owner)
        return memo[id(self)]

    # PyTorch begins these by asking a driver.

    def contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        if self.is_contiguous(memory_format=memory_format):
            return self
        return self.clone(memory_format=memory_format)

    def item(self) -> Any:
        self.owner.wait("a number read")
        return self.raw.item()

    def tolist(self) -> Any:
        self.owner.wait("a list read")
        return self.raw.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("a tensor on cuda:0 cannot be an array of numpy")

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def cpu(self) -> Tensor:  # type: ignore[override]
        return self.to("cpu")

    def __getitem__(self, index: Any) -> Emulated:
        return self.owner.get(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.owner.set(self, index, value)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]
        """Where the device's mode is not on: in other threads."""
        one = next(x for x in tensors_in((args, kwargs)) if isinstance(x, Emulated))
        return one.owner.dispatch(func, args, kwargs or {})


class EmulatedDevice(TorchDispatchMode):
    """Runs every operation; :func:`emulated_cuda.emulate` makes one."""

    def __init__(self) -> None:
        super().__init__()
        self.books = Books()
        self.tape: list[Callable[[], None]] | None = None  # of the graph that is captured
        self._strict = False
        self._pinned: dict[int, Tensor] = {}  # by address of its storage

    def count(self) -> Books:
        """Fresh books, kept from now on."""
        self.books = Books()
        return self.books

    def put(self, raw: Tensor) -> Emulated:
        """A tensor on the device, of memory on the CPU; no copy is counted."""
        with torch.inference_mode(raw.is_inference()):  # as its memory: a view of weights is none
            return Emulated(raw, self)

    def move(self, module: nn.Module) -> nn.Module:
        """A module on the device, in place; parameters that were shared still are."""
        moved: dict[int, Tensor] = {}
        for one in module.modules():
            for store in (one._parameters, one._buffers):
                for name, tensor in store.items():
                    if tensor is None or isinstance(tensor, Emulated):
                        continue
                    if id(tensor) not in moved:
                        there = moved[id(tensor)] = self.put(tensor.detach())
                        if isinstance(tensor, nn.Parameter):
                            wanted = tensor.requires_grad
                            moved[id(tensor)] = nn.Parameter(there, requires_grad=wanted)
                    store[name] = moved[id(tensor)]
        return module

    @contextlib.contextmanager
    def capturable(self) -> Iterator[None]:
        """Raises NotCapturable where a capture would: at copies, waits and data of the host."""
        before, self._strict = self._strict, True
        try:
            yield
        finally:
            self._strict = before

    def wait(self, what: str) -> None:
        """Counts a wait for the device."""
        self._meet(self.books.waits, what)

    def record(self, again: Callable[[], Any], result: Any) -> None:
        """Keeps, while a graph is captured, how a result is computed anew in its memory."""
        if self.tape is None:
            return
        olds = tensors_in(result)

        def replay() -> None:
            for old, new in zip(olds, tensors_in(again()), strict=True):
                if old is not new:
                    old.copy_(new)

        self.tape.append(replay)

    def pin(self, tensor: Tensor) -> Tensor:
        """Remembers memory of the host as pinned."""
        self._pinned[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._pinned

    # What becomes of an operation.

    def get(self, x: Emulated, index: Any) -> Emulated:
        """``x[index]``."""
        advanced = self._index(index, None)
        raw_index = raw_of(index)
        result = x.raw[raw_index]
        if advanced:
            self.books.launches["index"] += 1
            self.record(lambda: x.raw[raw_index], result)
        return self.put(result)

    def set(self, x: Emulated, index: Any, value: Any) -> None:
        """``x[index] = value``."""
        advanced = self._index(index, value)
        here = isinstance(value, Tensor) and not isinstance(value, Emulated) and value.dim() > 0
        if here and advanced:
            raise Mismatch(f"index_put_: values {_size(value)} on the CPU at {_caller()}")
        if here:
            self._meet(self.books.copies, _size(value))
        else:
            self.books.launches["index_put_" if advanced else "copy_"] += 1
        raw_index, raw_value = raw_of((index, value))
        x.raw[raw_index] = raw_value
        self.record(lambda: x.raw.__setitem__(raw_index, raw_value), None)

    def _index(self, index: Any, value: Any) -> bool:
        """Whether an index has tensors or lists; counts what copies and waits they cost."""
        parts = index if isinstance(index, tuple) else (index,)
        found = [x for x in parts if isinstance(x, Tensor | list)]
        single = value is not None and (not isinstance(value, Tensor) or value.numel() == 1)
        for x in found:
            if isinstance(x, list) or (x.dim() and not isinstance(x, Emulated)):
                self._meet(self.books.copies, "an index")
            elif x.dtype == torch.bool and not single:  # one value needs no positions
                self.wait("a boolean index")
            elif not x.dim() and isinstance(x, Emulated) and value is None:
                self.wait("an index of one number")
        return bool(found)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.dispatch(func, args, kwargs or {})

    def dispatch(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Runs an operation as the device would."""
        name = func._schema.name.split("::")[1]
        tensors = tensors_in((args, kwargs))
        there = [x for x in tensors if isinstance(x, Emulated)]
        target = kwargs.get("device")
        if not there and (target is None or torch.device(target).type != "cuda"):
            if not kwargs.pop("pin_memory", None):
                return func(*args, **kwargs)
            return self.pin(func(*args, **kwargs))
        if name == "_to_copy":
            return self._moved(func, args[0], kwargs)
        if name == "copy_" and isinstance(args[0], Emulated) != isinstance(args[1], Emulated):
            return self._copied(*args, **kwargs)
        if func.namespace == "retrv_kernels" and name in registry.OPS:
            with self:
                return registry.run(name, list(args))
        if name not in WHOLE and _decomposes(func):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        self._check(name, args, kwargs, [x for x in tensors if not isinstance(x, Emulated)])
        return self._run(func, name, args, kwargs, there)

    def _moved(self, func: Any, source: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """To another device, dtype or layout."""
        kwargs = {**kwargs, "pin_memory": None}
        target = torch.device(kwargs.pop("device", None) or source.device)
        if not isinstance(source, Emulated):
            self._meet(self.books.copies, _size(source))
            return self.put(func(source, **kwargs))
        if target.type == "cuda":
            return self._run(func, "_to_copy", (source,), kwargs, [source])
        return self._fetch(func(source.raw, **kwargs), bool(kwargs.get("non_blocking")))

    def _copied(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        """``copy_`` from one device to the other."""
        if isinstance(target, Emulated):
            self._meet(self.books.copies, _size(source))
            target.raw.copy_(source)
            return target
        assert isinstance(source, Emulated)
        return self._fetch(target.copy_(source.raw), non_blocking and self.is_pinned(target))

    def _fetch(self, result: Tensor, freely: bool) -> Tensor:
        """Counts a copy to the host; one that nobody waits for goes to pinned memory."""
        if not freely:
            self.wait(f"a copy to the host, {_size(result)}")
            return result
        self._meet(self.books.results, _size(result))
        return self.pin(result)

    def _check(
        self, name: str, args: Sequence[Any], kwargs: dict[str, Any], here: Sequence[Tensor]
    ) -> None:
        """Raises for what is on the wrong device; counts copies and waits that hide in it."""
        here = [x for x in here if x.dim() > 0]  # one number goes along with a launch
        shapes = [tuple(x.shape) for x in here]
        values = args[2] if len(args) > 2 else None
        if name in INDEXING and isinstance(args[0], Emulated):
            if any(x is values for x in here):
                raise Mismatch(f"{name}: values {shapes} on the CPU at {_caller()}")
            self._index(tuple(args[1]), values)
        elif here:
            raise Mismatch(f"{name}: {shapes} on the CPU among those of the GPU at {_caller()}")
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type == "cpu":
            raise Mismatch(f"{name}: a generator of the CPU at {_caller()}")
        if name in ("_local_scalar_dense", "equal"):
            self.wait(name)
        if name in SIZED_BY_VALUES and kwargs.get("output_size") is None:
            self.wait(name)

    def _run(
        self,
        func: Any,
        name: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        there: Sequence[Emulated],
    ) -> Any:
        """Computes on the CPU; what comes of it is on the device."""
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": torch.device("cpu"), "pin_memory": None}
        raw_args, raw_kwargs = raw_of((args, kwargs))
        run = functools.partial(_widened if _widens(func) else func, *raw_args, **raw_kwargs)
        result = run()
        kinds = [one.alias_info for one in func._schema.returns]
        view = any(kind is not None and not kind.is_write for kind in kinds)
        if not view and name not in FREE and name != "_local_scalar_dense":
            self.books.launches[name] += 1
            self.record(run, result)
        return self.wrap(result, there)

    def wrap(self, result: Any, there: Sequence[Emulated]) -> Any:
        """A result on the device; what is one of the arguments ``there`` is that argument."""
        known = {id(x.raw): x for x in there}
        return mapped(lambda x: known[id(x)] if id(x) in known else self.put(x), result)

    def _meet(self, counter: Counter[str], what: str) -> None:
        line = f"{what} at {_caller()}"
        if self._strict:
            raise NotCapturable(line)
        counter[line] += 1


class Calls(TorchFunctionMode):
    """Python's calls that would look for a real device before they come to an operation."""

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
    """A device with its number: without, PyTorch would ask the driver which is the current one."""
    if isinstance(value, str) and value.split(":")[0] == "cuda":
        return DEVICE
    return DEVICE if isinstance(value, torch.device) and value.type == "cuda" else value


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of nested tuples, lists and dictionaries, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return []
    return [tensor for one in value for tensor in tensors_in(one)]


def mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same value with all its tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: mapped(change, one) for key, one in value.items()}
    if not isinstance(value, tuple | list):
        return value
    parts = [mapped(change, one) for one in value]
    return type(value)._make(parts) if hasattr(value, "_make") else type(value)(parts)


def raw_of(value: Any) -> Any:
    """The same value with tensors of the CPU in the place of those on the device."""
    return mapped(lambda x: x.raw if isinstance(x, Emulated) else x, value)


def _size(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {tensor.dtype}"


def _decomposes(func: Any) -> bool:
    """Whether an operation consists of others wherever it runs."""
    key = "CompositeImplicitAutograd"
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)


def _widens(func: Any) -> bool:
    """Whether it is a product of halves with a float32 result, which CPUs do not have."""
    return func._overloadname.startswith("dtype") and func._schema.name.endswith("mm")


def _widened(*args: Any) -> Tensor:
    """``mm``, ``bmm`` or, with a summand, ``addmm`` of halves, the result in another dtype."""
    *tensors, dtype = args
    left, right = (x.to(dtype) for x in tensors[-2:])
    return left @ right if len(tensors) == 2 else tensors[0].to(dtype) + left @ right


_OTHERS = tuple(map(str, (Path(torch.__file__).parent, Path(__file__).with_name("emulated_"))))
_OTHERS += (contextlib.__file__,)


def _caller() -> str:
    """The line that asked, outside PyTorch and the emulation."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.startswith(_OTHERS):
        frame = frame.f_back
    name, number = frame.f_code.co_filename, frame.f_lineno
    return f"{'/'.join(Path(name).parts[-3:])}:{number} {linecache.getline(name, number).strip()}"
