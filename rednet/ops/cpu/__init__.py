"""The cpu backend: compiled kernels for all dtypes, layouts and windows, on PyTorch's threads.

docs/cpu_kernel.md explains the design.
"""

from __future__ import annotations

from torch import Tensor

from rednet.ops.backends import FUSED_OPERATIONS, Backend, Problem
from rednet.ops.cpu import generating, loader
from rednet.ops.geometry import Geometry


def forward(input: Tensor, weight: Tensor, output: Tensor, geometry: Geometry) -> None:
    """Sums the weighted pixels of each window."""
    _call("forward", input, weight, output, geometry)


def grad_input(grad_output: Tensor, weight: Tensor, grad_input: Tensor, geometry: Geometry) -> None:
    """Gathers, for each pixel, the weighted gradients of the outputs that have read it."""
    _call("grad_input", grad_input, weight, grad_output, geometry)


def grad_weight(
    grad_output: Tensor, input: Tensor, grad_weight: Tensor, geometry: Geometry
) -> None:
    """Sums pixels times output gradients over the channels of each group."""
    _call("grad_weight", input, grad_weight, grad_output, geometry)


def _call(name: str, image: Tensor, weight: Tensor, pixels: Tensor, geometry: Geometry) -> None:
    loader.call(name, image.dtype, loader.describe_problem(image, weight, pixels, geometry))


def _unsupported_reason(problem: Problem) -> str | None:
    if problem.device.type != "cpu":
        return "it supports CPU tensors only"
    if loader.load() is None:
        return "its kernels were not built"
    if problem.operation in FUSED_OPERATIONS:
        return generating.unsupported_reason(problem)
    return None


BACKEND = Backend(
    "cpu",
    forward,
    grad_input,
    grad_weight,
    _unsupported_reason,
    generating.generate,
    generating.generate_grad_input,
    generating.grad_generator,
)
