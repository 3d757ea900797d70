"""The cpu backend: compiled kernels for all dtypes, layouts and windows, on PyTorch's threads.

docs/cpu_kernel.md explains the design.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rednet.ops.backends import Backend, Problem
from rednet.ops.cpu import loader
from rednet.ops.geometry import Geometry

# The numbers in the longest vector of all builds.
_LANES = 16


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


def generate(
    input: Tensor,
    reduced: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    output: Tensor,
    geometry: Geometry,
) -> None:
    """Sums the weighted pixels of each window, with the weight of a few pixels at a time."""
    groups = len(matrix) // (geometry.kernel_size[0] * geometry.kernel_size[1])
    problem = loader.describe_problem(input, None, output, geometry, groups)
    # A pixel's reduced channels lie apart, pixels side by side: they are the lanes of vectors.
    reduced, matrix = reduced.contiguous(), matrix.contiguous()
    bias = None if bias is None else bias.contiguous()
    generation = loader.Generation(
        problem,
        reduced.data_ptr(),
        matrix.data_ptr(),
        None if bias is None else bias.data_ptr(),
        reduced.shape[1],
    )
    loader.call("generate", input.dtype, generation)


def _call(name: str, image: Tensor, weight: Tensor, pixels: Tensor, geometry: Geometry) -> None:
    loader.call(name, image.dtype, loader.describe_problem(image, weight, pixels, geometry))


def _unsupported_reason(problem: Problem) -> str | None:
    if problem.device.type != "cpu":
        return "it supports CPU tensors only"
    if loader.load() is None:
        return "its kernels were not built"
    if problem.operation == "generate":
        return _no_generation_reason(problem)
    return None


def _no_generation_reason(problem: Problem) -> str | None:
    if problem.dtype not in (torch.float64, torch.float32):
        return "it generates weights of float64 and float32 only"
    if problem.output[0] * problem.output[1] < _LANES:
        return f"it generates weights of maps of {_LANES} pixels or more"
    return None


BACKEND = Backend("cpu", forward, grad_input, grad_weight, _unsupported_reason, generate)
