"""How many multiply-adds involution and its gradients take.

Importing this module, or :mod:`rednet.flops`, registers the formulas with
``torch.utils.flop_counter``. That module takes a tenth of a second, so ``import rednet`` leaves it
out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch.utils import flop_counter

# Define the operators that the formulas are for.
import rednet.ops.generating
import rednet.ops.torch_library  # noqa: F401

Shape = Sequence[int]


def involution_multiply_adds(image: Shape, kernel_size: Shape, output_size: Shape) -> int:
    """Multiply-adds of involution; each of its gradients takes as many.

    Args:
        image: (N, C, ...), the shape of an input or an output.
        kernel_size: (Kh, Kw).
        output_size: (Ho, Wo).
    """
    return prod(image[:2]) * prod(kernel_size) * prod(output_size)


def _register(operator: Any) -> Callable[[Callable[..., int]], Callable[..., int]]:
    if hasattr(flop_counter, "register_flop_formula"):
        return flop_counter.register_flop_formula(operator)

    def add(formula: Callable[..., int]) -> Callable[..., int]:
        vars(flop_counter)["flop_mapping"][operator] = formula  # torch 2.1
        return formula

    return add


# The counter counts a multiply-add as two operations.
@_register(torch.ops.rednet.involution2d)
def _forward(input: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return 2 * involution_multiply_adds(input, weight[2:4], weight[4:6])


@_register(torch.ops.rednet.involution2d_grad_input)
def _grad_input(grad: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return 2 * involution_multiply_adds(grad, weight[2:4], weight[4:6])


@_register(torch.ops.rednet.involution2d_grad_weight)
def _grad_weight(
    grad: Shape, input: Shape, groups: int, kernel_size: Shape, *_: Any, **__: Any
) -> int:
    return 2 * involution_multiply_adds(grad, kernel_size, grad[2:4])


@_register(torch.ops.rednet.generating_involution2d)
def _generating(
    input: Shape,
    reduced: Shape,
    matrix: Shape,
    bias: Shape | None,
    kernel_size: Shape,
    *_: Any,
    **__: Any,
) -> int:
    generated = prod(matrix) * reduced[0] * prod(reduced[2:])
    return 2 * (generated + involution_multiply_adds(input, kernel_size, reduced[2:]))
