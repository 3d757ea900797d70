"""Kernels mixed from experts: products with a matrix that has few rows and very long ones.

On CPUs a compiled kernel makes them, where there is one; general matrix products take twice as
long. docs/cpu_kernel.md has the measurements.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rednet.ops.autocast import autocast_dtype
from rednet.ops.checks import is_plain
from rednet.ops.cpu import loader
from rednet.ops.cpu import mixing as compiled
from rednet.ops.tracing import (
    is_batched,
    is_compiling,
    is_recorded,
    is_transformed,
)

# Gradients of fewer multiply-adds take less time than calling the compiled kernel does.
_LEAST_WORK = 2**22
# The same for mixing, by the most kernels that it holds for: they are written to all at the same
# places, where many evict each other from the cache.
_LEAST_WORK_OF_KERNELS = {4: 2**21, 8: 2**24}


def mix(experts: Tensor, routing: Tensor) -> Tensor:
    """Sums the experts, each times its share in a sample.

    Differentiable twice.

    Args:
        experts: Shape (K, M).
        routing: Shape (N, K).

    Returns:
        Shape (N, M).
    """
    # Before anything depends on the sizes: compiled graphs serve others too.
    is_eager = not is_compiling()
    if is_eager and _mixing_gains(len(routing), experts.numel()) and _are_served(experts, routing):
        return _Mix.apply(experts, routing)
    return torch.mm(routing, experts)


def mix_gradients(
    grad: Tensor, experts: Tensor, routing: Tensor, out: Tensor, *, adds: bool
) -> Tensor:
    """The gradients of :func:`mix`, which cannot be differentiated.

    Args:
        grad: Shape (N, M), that of the output.
        experts: Shape (K, M).
        routing: Shape (N, K).
        out: Shape (K, M), filled with the gradient of the experts.
        adds: Whether to add to ``out`` rather than to fill it.

    Returns:
        The gradient of the routing, of its shape.
    """
    gains = routing.shape[0] * experts.numel() >= _LEAST_WORK
    if gains and grad.stride(1) == 1 and _are_served(experts, routing, grad, out):
        return compiled.mix_gradients(grad, experts, routing, out, adds)
    out.addmm_(routing.t().to(out.dtype), grad.to(out.dtype), beta=1 if adds else 0)
    return grad @ experts.t()


def _mixing_gains(samples: int, numbers: int) -> bool:
    work = samples * numbers
    return any(samples <= most and work >= least for most, least in _LEAST_WORK_OF_KERNELS.items())


def _are_served(experts: Tensor, routing: Tensor, *others: Tensor) -> bool:
    """Whether the compiled kernels serve these tensors, here and now."""
    tensors = (experts, routing, *others)
    return (
        not is_recorded()
        and all(map(is_plain, tensors))
        and all(each.dtype == experts.dtype and each.device.type == "cpu" for each in tensors)
        and experts.dtype in loader.DTYPES
        and experts.stride(1) == 1
        and autocast_dtype("cpu") is None
        and loader.load() is not None
    )


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(experts: Tensor, routing: Tensor) -> Tensor:
        kernels = experts.new_empty(routing.shape[0], experts.shape[1])
        compiled.mix(experts, routing, kernels)
        return kernels

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        experts, routing = ctx.saved_tensors
        needs_experts, needs_mixture = ctx.needs_input_grad
        is_composed = torch.is_grad_enabled() or is_batched(grad) or is_transformed()
        if is_composed or not (needs_experts and needs_mixture):
            return (
                routing.t() @ grad if needs_experts else None,
                grad @ experts.t() if needs_mixture else None,
            )
        grad_experts = torch.empty_like(experts)
        return grad_experts, mix_gradients(grad, experts, routing, grad_experts, adds=False)
