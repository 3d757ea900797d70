"""The Triton backend: launches the kernels of ``kernels.py`` on the tensors of a problem."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
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
# Of the product that generates kernels: no larger, for registers; tensor cores take no smaller.
TILE_REDUCED = 16
LEAST_TAPS, MOST_TAPS = 8, 32
LEAST_PIXELS = 16
_LARGEST_INT32 = 2**31 - 1
# The oldest that the kernels were compiled with.
OLDEST_TRITON = (3, 6)


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
            KERNEL_HEIGHT=geometry.kernel_size[0],
            KERNEL_WIDTH=geometry.kernel_size[1],
            TILE_CHANNELS=tile_channels,
            TILE_PIXELS=tile_pixels,
            ACCUMULATOR=_triton_dtype(accumulation_dtype(input.dtype)),
            WIDE=any(_extent_of_an_image(tensor) > _LARGEST_INT32 for tensor in tensors),
        )


def generate(
    input: Tensor,
    reduced: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    output: Tensor,
    geometry: Geometry,
) -> None:
    """Fills output, (N, C, Ho, Wo)."""
    from rednet.ops.triton import generating

    kernel_height, kernel_width = geometry.kernel_size
    groups = len(matrix) // (kernel_height * kernel_width)
    group_channels = input.shape[1] // groups
    pixels = output.shape[2] * output.shape[3]
    tile_channels = min(TILE_CHANNELS, _next_power_of_2(group_channels))
    tile_pixels = min(TILE_PIXELS, max(LEAST_PIXELS, _next_power_of_2(pixels)))
    blocks = ceil(group_channels / tile_channels) * ceil(pixels / tile_pixels)
    images = (input, reduced, output)
    with torch.cuda.device_of(input):
        generating.generate[(input.shape[0] * groups * blocks,)](
            *(input, reduced, matrix, bias, output),
            *(tensor.stride() for tensor in (input, reduced, matrix, output)),
            (groups, group_channels),
            reduced.shape[1],
            tuple(input.shape[2:]),
            tuple(output.shape[2:]),
            (*geometry.stride, *geometry.padding, *geometry.dilation),
            KERNEL_HEIGHT=kernel_height,
            KERNEL_WIDTH=kernel_width,
            TILE_CHANNELS=tile_channels,
            TILE_PIXELS=tile_pixels,
            TILE_REDUCED=TILE_REDUCED,
            TILE_TAPS=max(LEAST_TAPS, _next_power_of_2(kernel_width)),
            ACCUMULATOR=_triton_dtype(accumulation_dtype(input.dtype)),
            PRECISION=_precision(),
            WIDE=any(_extent_of_an_image(tensor) > _LARGEST_INT32 for tensor in images),
            num_warps=tile_pixels // LEAST_PIXELS,
            num_stages=1,
        )


def _precision() -> str:
    """How float32 numbers are multiplied: as PyTorch lets cuDNN's convolutions do it."""
    cudnn: Any = torch.backends.cudnn
    # The old name raises where the new one was set.
    is_new = hasattr(cudnn, "conv")  # torch >= 2.9
    rounds = cudnn.conv.fp32_precision == "tf32" if is_new else cudnn.allow_tf32
    return "tf32" if rounds else "tf32x3"


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
    if problem.operation == "generate" and problem.geometry.kernel_size[1] > MOST_TAPS:
        return f"it generates kernels of at most {MOST_TAPS} columns"
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
# Not preferred before a GPU has shown that it is faster than two steps.
FUSED = replace(BACKEND, name="triton-fused", generate=generate, on_request=True)
