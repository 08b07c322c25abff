"""An emulated GPU: CPU tensors that say they are on ``cuda:0``, and counts of what they cost.

The CPU computes the results. A tensor on the wrong device raises, as on a GPU. Launches, copies to
the device and waits for it are counted, with the line that caused them. The emulation tells nothing
about speed or kernels: Triton launches are only counted, and the kernels' references compute.
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
from emulated_tensor import Emulated, Mismatch, NotCapturable, mapped, raw_of, tensors_in
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from retrv_kernels import registry

# Each is one kernel, although PyTorch can decompose it.
WHOLE = {"argsort", "conv3d", "cross_entropy_loss", "einsum", "layer_norm", "linear", "matmul"}
WHOLE |= {"rms_norm", "scaled_dot_product_attention", "where"}
# These launch nothing: they allocate memory, or are views.
FREE = {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# The sizes of their results depend on values on the device.
SIZED_BY_VALUES = {"_unique2", "bincount", "masked_select", "nonzero", "repeat_interleave"}
SIZED_BY_VALUES |= {"unique_consecutive", "unique_dim"}


@dataclass
class Activity:
    """Counts of what the device was asked to do.

    Attributes:
        launches: kernels by name; the replay of a graph is one.
        copies: copies to the device, by line.
        waits: waits for the device, by line, including those of copies from it.
        results: copies to pinned memory, which do not wait, by line.
        compiled: Triton kernels with everything that their compilation depends on.
    """

    launches: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    results: Counter[str] = field(default_factory=Counter)
    compiled: set[tuple[str, Any]] = field(default_factory=set)


class EmulatedDevice(TorchDispatchMode):
    """Runs every operation; made by :func:`emulated_cuda.emulate`."""

    def __init__(self) -> None:
        super().__init__()
        self.activity = Activity()
        self.tape: list[Callable[[], None]] | None = None  # of the graph being captured
        self._strict = False
        self._pinned: dict[int, Tensor] = {}  # by address of its storage

    def count(self) -> Activity:
        """Starts new counts and returns them."""
        self.activity = Activity()
        return self.activity

    def put(self, raw: Tensor) -> Emulated:
        """Puts memory of the CPU on the device, without counting a copy."""
        with torch.inference_mode(raw.is_inference()):  # as its memory was made
            return Emulated(raw, self)

    def move(self, module: nn.Module) -> nn.Module:
        """Moves a module to the device, in place; shared parameters stay shared."""
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
        """Raises NotCapturable where a capture would fail: at copies and waits."""
        before, self._strict = self._strict, True
        try:
            yield
        finally:
            self._strict = before

    def wait(self, what: str) -> None:
        """Counts a wait for the device."""
        self._count_line(self.activity.waits, what)

    def record(self, again: Callable[[], Any], result: Any) -> None:
        """While a graph is captured, records how to compute a result again into its memory."""
        if self.tape is None:
            return
        olds = tensors_in(result)

        def replay() -> None:
            for old, new in zip(olds, tensors_in(again()), strict=True):
                if old is not new:
                    old.copy_(new)

        self.tape.append(replay)

    def pin(self, tensor: Tensor) -> Tensor:
        """Marks host memory as pinned."""
        self._pinned[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._pinned

    # Operations.

    def get(self, x: Emulated, index: Any) -> Emulated:
        """``x[index]``."""
        advanced = self._index(index, None)
        raw_index = raw_of(index)
        result = x.raw[raw_index]
        if advanced:
            self.activity.launches["index"] += 1
            self.record(lambda: x.raw[raw_index], result)
        return self.put(result)

    def set(self, x: Emulated, index: Any, value: Any) -> None:
        """``x[index] = value``."""
        advanced = self._index(index, value)
        here = isinstance(value, Tensor) and not isinstance(value, Emulated) and value.dim() > 0
        if here and advanced:
            raise Mismatch(f"index_put_: values {_size(value)} on the CPU at {_caller()}")
        if here:
            self._count_line(self.activity.copies, _size(value))
        else:
            self.activity.launches["index_put_" if advanced else "copy_"] += 1
        raw_index, raw_value = raw_of((index, value))
        x.raw[raw_index] = raw_value
        self.record(lambda: x.raw.__setitem__(raw_index, raw_value), None)

    def _index(self, index: Any, value: Any) -> bool:
        """Whether an index has tensors or lists; counts their copies and waits."""
        parts = index if isinstance(index, tuple) else (index,)
        found = [x for x in parts if isinstance(x, Tensor | list)]
        single = value is not None and (not isinstance(value, Tensor) or value.numel() == 1)
        for x in found:
            if isinstance(x, list) or (x.dim() and not isinstance(x, Emulated)):
                self._count_line(self.activity.copies, "an index")
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
        """Runs a conversion to another device, dtype or layout."""
        kwargs = {**kwargs, "pin_memory": None}
        target = torch.device(kwargs.pop("device", None) or source.device)
        if not isinstance(source, Emulated):
            self._count_line(self.activity.copies, _size(source))
            return self.put(func(source, **kwargs))
        if target.type == "cuda":
            return self._run(func, "_to_copy", (source,), kwargs, [source])
        return self._fetch(func(source.raw, **kwargs), bool(kwargs.get("non_blocking")))

    def _copied(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        """Runs ``copy_`` between the devices."""
        if isinstance(target, Emulated):
            self._count_line(self.activity.copies, _size(source))
            target.raw.copy_(source)
            return target
        assert isinstance(source, Emulated)
        return self._fetch(target.copy_(source.raw), non_blocking and self.is_pinned(target))

    def _fetch(self, result: Tensor, freely: bool) -> Tensor:
        """Counts a copy to the host; ``freely`` if nothing waits for it, as for pinned memory."""
        if not freely:
            self.wait(f"a copy to the host, {_size(result)}")
            return result
        self._count_line(self.activity.results, _size(result))
        return self.pin(result)

    def _check(
        self, name: str, args: Sequence[Any], kwargs: dict[str, Any], here: Sequence[Tensor]
    ) -> None:
        """Raises for tensors on the wrong device; counts an operation's hidden copies and waits."""
        here = [x for x in here if x.dim() > 0]  # a single number is passed with the launch
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
        """Computes on the CPU and puts the result on the device."""
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": torch.device("cpu"), "pin_memory": None}
        raw_args, raw_kwargs = raw_of((args, kwargs))
        run = functools.partial(_widened if _widens(func) else func, *raw_args, **raw_kwargs)
        result = run()
        kinds = [one.alias_info for one in func._schema.returns]
        view = any(kind is not None and not kind.is_write for kind in kinds)
        if not view and name not in FREE and name != "_local_scalar_dense":
            self.activity.launches[name] += 1
            self.record(run, result)
        return self.wrap(result, there)

    def wrap(self, result: Any, there: Sequence[Emulated]) -> Any:
        """Puts a result on the device; where it is one of the arguments ``there``, returns that."""
        known = {id(x.raw): x for x in there}
        return mapped(lambda x: known[id(x)] if id(x) in known else self.put(x), result)

    def _count_line(self, counter: Counter[str], what: str) -> None:
        line = f"{what} at {_caller()}"
        if self._strict:
            raise NotCapturable(line)
        counter[line] += 1


def _size(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {tensor.dtype}"


def _decomposes(func: Any) -> bool:
    """Whether an operation is composed of others on every device."""
    key = "CompositeImplicitAutograd"
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)


def _widens(func: Any) -> bool:
    """Whether it is a product of halves with a float32 result, which CPUs lack."""
    return func._overloadname.startswith("dtype") and func._schema.name.endswith("mm")


def _widened(*args: Any) -> Tensor:
    """``mm``, ``bmm`` or ``addmm`` of halves, with a result in another dtype."""
    *tensors, dtype = args
    left, right = (x.to(dtype) for x in tensors[-2:])
    return left @ right if len(tensors) == 2 else tensors[0].to(dtype) + left @ right


_OTHERS = tuple(map(str, (Path(torch.__file__).parent, Path(__file__).with_name("emulated_"))))
_OTHERS += (contextlib.__file__,)


def _caller() -> str:
    """The calling line outside PyTorch and the emulation."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.startswith(_OTHERS):
        frame = frame.f_back
    name, number = frame.f_code.co_filename, frame.f_lineno
    return f"{'/'.join(Path(name).parts[-3:])}:{number} {linecache.getline(name, number).strip()}"
