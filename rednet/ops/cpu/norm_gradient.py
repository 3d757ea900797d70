"""The compiled gradients of a batch norm in training with the ReLU after it.

See src/norm_gradient.h.
"""

from __future__ import annotations

from math import lcm

import torch
from torch import Tensor

from rednet.ops.cpu import finishing, loader
from rednet.ops.tracing import is_batched

# Every build's vectors divide a row of so many numbers.
_ROW = 16
# In a task: enough to make up for its sums, few enough for them to be exact.
_NUMBERS = 1 << 15


def unsupported_reason(grad: Tensor, input: Tensor, weight: Tensor) -> str | None:
    """Why the kernels cannot compute the gradients of such a norm, None if they can."""
    if not grad.dtype == input.dtype == weight.dtype:
        return "it supports tensors of one dtype only"
    if is_batched(grad):
        return "it supports one gradient at a time only"
    return finishing.unsupported_reason(input) or finishing.unsupported_reason(grad)


def norm_relu_gradients(
    grad: Tensor, input: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, deviation: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of input, weight and bias.

    Args:
        grad: Gradient of the ReLU's output, (N, C, H, W), dense in channels_last.
        input: The norm's input, as ``grad``.
        weight: Of the norm, (C,).
        bias: Of the norm, (C,).
        mean: Of the batch, (C,).
        deviation: Inverse of the batch's standard deviation, (C,).
    """
    batch, channels, height, width = input.shape
    pixels, period = batch * height * width, lcm(channels, _ROW)
    block = -(-_NUMBERS // period) * period
    tasks = -(-pixels * channels // block)
    sums, grad_input = input.new_empty(tasks, 2, period), torch.empty_like(input)
    scale = weight * deviation
    shift = bias - mean * scale
    repeated = [_repeated(each.contiguous(), period) for each in (mean, scale, shift)]
    map = loader.NormGradient(
        *(pixels, channels, period, block),
        *(each.data_ptr() for each in (input, grad, grad_input, *repeated)),
        *(None, None, sums.data_ptr()),
    )
    loader.call("norm_sums", input.dtype, map)
    of_bias, of_product = sums.view(tasks, 2, -1, channels).sum((0, 2), dtype=torch.float64)
    slope = (of_product * scale * deviation.square() / -pixels).to(input.dtype)
    offset = (of_bias * scale / -pixels).to(input.dtype)
    repeated += [_repeated(each, period) for each in (slope, offset)]
    map.slope, map.offset = (each.data_ptr() for each in repeated[-2:])
    loader.call("norm_input_gradient", input.dtype, map)
    of_weight = of_product * deviation
    return grad_input, of_weight.to(weight.dtype), of_bias.to(bias.dtype)


def _repeated(channels: Tensor, period: int) -> Tensor:
    return channels.repeat(period // len(channels)) if len(channels) < period else channels
