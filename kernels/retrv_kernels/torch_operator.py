"""Registers an op with PyTorch, so that it can be compiled, exported and differentiated."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from retrv_kernels import registry

NAMESPACE = "retrv_kernels"


def register(
    op: str,
    fake: Callable[..., Any],
    check: Callable[..., None] | None = None,
    *,
    writes: Sequence[str] = (),
) -> None:
    """Defines ``torch.ops.retrv_kernels.<op>``, which runs what the registry chooses.

    The operator has the arguments and results of the op's reference function.

    Args:
        fake: function of the operator's arguments that makes empty results of the right shape,
            dtype and device.
        check: function of the operator's arguments that raises ValueError if their values are
            invalid; None if no values can be.
        writes: names of the arguments that the op writes into.
    """
    name = f"{NAMESPACE}::{op}"
    # The plain interface rather than `custom_op`: 8 µs less a call.
    torch.library.define(name, _schema(op, writes))

    @torch.library.impl(name, "CompositeExplicitAutograd")
    def _(*arguments: Any) -> Any:
        if check:
            check(*arguments)
        return registry.run(op, arguments)

    torch.library.register_fake(name)(fake)


def accumulated(tensor: Tensor) -> torch.dtype:
    """The dtype in which sums over a tensor are kept: float32, or float64 for float64."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def differentiable(op: str, inputs: Sequence[str]) -> None:
    """Gives a registered op with one result a backward that recomputes its reference.

    The forward is the chosen kernel. The backward is an operator too, so that a compiler does not
    trace into it: its shapes depend on data.

    Args:
        inputs: names of the tensor arguments that get gradients.
    """
    reference = registry.OPS[op][-1].run
    names = list(inspect.signature(reference).parameters)
    places = [names.index(name) for name in inputs]
    backward = f"{NAMESPACE}::{op}_backward"
    arguments = _schema(op)[1:].rpartition(") ->")[0]
    results = ", ".join(["Tensor"] * len(inputs))
    torch.library.define(backward, f"(Tensor grad, {arguments}) -> ({results})")

    @torch.library.impl(backward, "CompositeExplicitAutograd")
    def _(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        floats = [place for place in places if arguments[place].is_floating_point()]

        def forward(*differentiated: Tensor) -> Tensor:
            filled = list(arguments)
            for place, value in zip(floats, differentiated, strict=True):
                filled[place] = value
            return reference(*filled)

        pull = torch.func.vjp(forward, *(arguments[place] for place in floats))[1]
        parts = dict(zip(floats, pull(grad), strict=True))
        # int8 rows have no gradient, but an operator must return a tensor in their place.
        return tuple(
            parts[p].contiguous() if p in parts else torch.zeros_like(arguments[p]) for p in places
        )

    @torch.library.register_fake(backward)
    def _(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        return tuple(
            torch.empty_like(arguments[place], memory_format=torch.contiguous_format)
            for place in places
        )

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        tensors = [i for i, value in enumerate(inputs) if isinstance(value, Tensor)]
        ctx.save_for_backward(*(inputs[i] for i in tensors))
        ctx.tensors = tensors
        ctx.others = [None if i in tensors else value for i, value in enumerate(inputs)]

    def pull_back(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        arguments = list(ctx.others)
        for place, value in zip(ctx.tensors, ctx.saved_tensors, strict=True):
            arguments[place] = value
        gradients: list[Tensor | None] = [None] * len(arguments)
        parts = getattr(torch.ops.retrv_kernels, f"{op}_backward")(grad, *arguments)
        parts = (parts,) if isinstance(parts, Tensor) else parts
        for place, part in zip(places, parts, strict=True):
            gradients[place] = part if ctx.needs_input_grad[place] else None
        return tuple(gradients)

    torch.library.register_autograd(f"{NAMESPACE}::{op}", pull_back, setup_context=setup_context)


def _schema(op: str, writes: Sequence[str] = ()) -> str:
    """Arguments and results of an op's reference function, in PyTorch's schema language."""
    return torch.library.infer_schema(registry.OPS[op][-1].run, mutates_args=writes)
