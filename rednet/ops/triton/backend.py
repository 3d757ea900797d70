"""The Triton backend: launches the kernels of ``kernels.py`` on the tensors of a problem."""

from __future__ import annotations

import importlib.util
from functools import cache
from math import ceil
from typing import Any

import torch
from torch import Tensor

from rednet.ops.backends import Backend, Problem
from rednet.ops.dtypes import accumulation_dtype
from rednet.ops.geometry import Geometry

# The largest tile. Not tuned on a GPU yet.
TILE_CHANNELS = 16
TILE_PIXELS = 128
_LARGEST_INT32 = 2**31 - 1
# Older ones cannot index constant tuples in kernels.
OLDEST_TRITON = (3, 8)


def forward(input: Tensor, weight: Tensor, output: Tensor, geometry: Geometry) -> None:
    """Fills output, (N, C, Ho, Wo)."""
    _launch("forward", (input, weight, output), input, weight, geometry)


def grad_input(grad_output: Tensor, weight: Tensor, grad_input: Tensor, geometry: Geometry) -> None:
    """Fills grad_input, (N, C, H, W)."""
    _launch("grad_input", (grad_output, weight, grad_input), grad_input, weight, geometry)


def grad_weight(
    grad_output: Tensor, input: Tensor, grad_weight: Tensor, geometry: Geometry
) -> None:
    """Fills grad_weight, (N, G, Kh, Kw, Ho, Wo)."""
    _launch("grad_weight", (grad_output, input, grad_weight), input, grad_weight, geometry)


def _launch(
    operation: str,
    tensors: tuple[Tensor, Tensor, Tensor],
    input: Tensor,
    weight: Tensor,
    geometry: Geometry,
) -> None:
    """Runs one kernel.

    Args:
        operation: The kernel's name.
        tensors: What it reads and what it fills, in the order of its arguments.
        input: The one with the shape of the input, (N, C, H, W).
        weight: The one with the shape of the weight, (N, G, Kh, Kw, Ho, Wo).
        geometry: The window.
    """
    from rednet.ops.triton import kernels

    groups = weight.shape[1]
    group_channels = input.shape[1] // groups
    input_size, output_size = tuple(input.shape[2:]), tuple(weight.shape[4:])
    pixels = input_size if operation == "grad_input" else output_size
    tile_channels = min(TILE_CHANNELS, _next_power_of_2(group_channels))
    tile_pixels = min(TILE_PIXELS, _next_power_of_2(pixels[0] * pixels[1]))
    channel_blocks = 1 if operation == "grad_weight" else ceil(group_channels / tile_channels)
    programs = input.shape[0] * groups * channel_blocks * ceil(pixels[0] * pixels[1] / tile_pixels)
    with torch.cuda.device_of(input):
        getattr(kernels, operation)[(programs,)](
            *tensors,
            *(tensor.stride() for tensor in tensors),
            (groups, group_channels),
            input_size,
            output_size,
            (*geometry.stride, *geometry.padding, *geometry.dilation),
            KERNEL_SIZE=geometry.kernel_size,
            TILE=(tile_channels, tile_pixels),
            ACCUMULATOR=_triton_dtype(accumulation_dtype(input.dtype)),
            WIDE=any(_extent_of_an_image(tensor) > _LARGEST_INT32 for tensor in tensors),
        )


def _next_power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _triton_dtype(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32


def _extent_of_an_image(tensor: Tensor) -> int:
    """The largest offset between two elements of one image."""
    pairs = zip(tensor.shape[1:], tensor.stride()[1:], strict=True)
    return sum((size - 1) * abs(stride) for size, stride in pairs)


def _unsupported_reason(problem: Problem) -> str | None:
    if problem.device.type != "cuda":
        return "it supports CUDA tensors only"
    return _reason_on(problem.device)


@cache
def _reason_on(device: torch.device) -> str | None:
    """None if the kernels can run on this device, else the reason why they cannot."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; PyTorch's CUDA builds for Linux bring it"
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    import triton

    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST_TRITON:
        return f"it needs Triton {'.'.join(map(str, OLDEST_TRITON))}, found {triton.__version__}"
    image = torch.zeros(1, 1, 1, 1, device=device)
    weight = torch.zeros(1, 1, 1, 1, 1, 1, device=device)
    try:
        forward(image, weight, torch.empty_like(image), Geometry((1, 1), (1, 1), (0, 0), (1, 1)))
    except Exception as error:  # Triton, its compiler and the driver each raise their own
        return f"Triton cannot compile for {device}: {type(error).__name__}: {error}"
    return None


BACKEND = Backend("triton", forward, grad_input, grad_weight, _unsupported_reason)
