"""Gradients of a function by autograd, for backward operators that are called apart from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor
) -> tuple[Tensor, ...]:
    """The gradients of ``<function(*inputs), grad_output>`` by every input.

    Args:
        function: Computes a tensor of ``grad_output``'s shape by operators that autograd knows.
        inputs: Floating tensors. The function is run on them again.
        grad_output: The gradient of the output.
    """
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        return torch.autograd.grad(function(*leaves), leaves, grad_output)


def at_least_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """16-bit tensors as float32, in which they are computed; others as they are."""
    return tuple(
        tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
        for tensor in tensors
    )
