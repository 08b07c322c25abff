"""Registers an op with PyTorch, so that it can be compiled, exported and differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from retrv_kernels import registry

NAMESPACE = "retrv_kernels"


def register(
    op: str, schema: str, fake: Callable[..., Any], check: Callable[..., None] | None = None
) -> None:
    """Defines ``torch.ops.retrv_kernels.<op>``, which runs what the registry chooses.

    Args:
        schema: arguments and results in PyTorch's schema language.
        fake: makes empty results of the right shape, dtype and device from the arguments.
        check: raises ValueError for arguments whose values do not fit, where any might not.
    """
    name = f"{NAMESPACE}::{op}"
    # The plain interface rather than `custom_op`: 8 µs less a call.
    torch.library.define(name, schema)

    @torch.library.impl(name, "CompositeExplicitAutograd")
    def _(*arguments: Any) -> Any:
        if check:
            check(*arguments)
        return registry.run(op, arguments)

    torch.library.register_fake(name)(fake)


def accumulated(tensor: Tensor) -> torch.dtype:
    """The dtype in which sums over a tensor are kept: float32, and float64 for float64."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def differentiable(op: str, schema: str, inputs: Sequence[str]) -> None:
    """Gives a registered op of one result a backward that recomputes its reference.

    The forward is the chosen kernel's. The backward is an operator too, so that a compiler does
    not look inside, where shapes depend on data.

    Args:
        schema: the op's arguments without parentheses.
        inputs: names of the arguments that get gradients, all of them tensors.
    """
    names = [part.split()[-1] for part in schema.split(",")]
    places = [names.index(name) for name in inputs]
    backward = f"{NAMESPACE}::{op}_backward"
    results = ", ".join(["Tensor"] * len(inputs))
    torch.library.define(backward, f"(Tensor grad, {schema}) -> ({results})")

    @torch.library.impl(backward, "CompositeExplicitAutograd")
    def _(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        reference = registry.OPS[op][-1].run
        floats = [place for place in places if arguments[place].is_floating_point()]

        def forward(*differentiated: Tensor) -> Tensor:
            filled = list(arguments)
            for place, value in zip(floats, differentiated, strict=True):
                filled[place] = value
            return reference(*filled)

        pull = torch.func.vjp(forward, *(arguments[place] for place in floats))[1]
        parts = dict(zip(floats, pull(grad), strict=True))
        # int8 rows have no gradient, but an operator must return something in their place.
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
