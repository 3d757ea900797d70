"""The compiled kernel of a 1 x 1 convolution and what follows it; see src/pointwise.h."""

from __future__ import annotations

import torch
from torch import Tensor

from rednet.ops.checks import is_plain
from rednet.ops.cpu import loader
from rednet.ops.cpu.finishing import Following
from rednet.ops.cpu.finishing import unsupported_reason as unfinished_reason
from rednet.ops.geometry import Pair


def unsupported_reason(input: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    """Why the kernel cannot convolve such a map, or should not; None if it can."""
    if reason := unfinished_reason(input):
        return reason
    for each in (weight,) if bias is None else (weight, bias):
        if not (
            is_plain(each) and each.is_cpu and each.dtype == input.dtype and each.is_contiguous()
        ):
            return "it supports dense parameters of the input's dtype only"
    if weight.shape[1:] != (input.shape[1], 1, 1) or not (
        bias is None or bias.shape == weight.shape[:1]
    ):
        return "it convolves with kernels of 1 x 1, without groups"
    return None if loader.multiplies_fast() else "PyTorch's is faster on this processor"


def output_shape(input: Tensor, weight: Tensor, stride: Pair) -> torch.Size:
    """The shape of the output, (N, O, Ho, Wo)."""
    batch, _, height, width = input.shape
    return torch.Size((batch, len(weight), -(-height // stride[0]), -(-width // stride[1])))


def convolve(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, following: Following
) -> Tensor:
    """A 1 x 1 convolution without padding and what follows it, dense in channels_last.

    Args:
        input: Shape (N, C, H, W), dense in channels_last.
        weight: Shape (O, C, 1, 1).
        bias: Shape (O,), or None.
        stride: Step between output pixels, in input pixels.
        following: What follows the convolution.
    """
    output = torch.empty(
        output_shape(input, weight, stride),
        dtype=input.dtype,
        device=input.device,
        memory_format=torch.channels_last,
    )
    _, channels, height, width = input.shape
    row = width * channels
    convolution = loader.PointwiseConvolution(
        following.describe(input, output),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        *(channels, *output.shape[2:]),
        *(height * row, stride[0] * row, stride[1] * channels),
    )
    loader.call("pointwise", input.dtype, convolution)
    return output
