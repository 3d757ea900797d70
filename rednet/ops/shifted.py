"""The shifted backend: a multiply-add of whole tensors for each kernel position, in PyTorch.

It runs on every device, needs no compiler and stores nothing of size K * K besides the weight: each
kernel position reads a shifted, strided view of the padded input.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rednet.ops.backends import Backend, Problem
from rednet.ops.dtypes import accumulation_dtype
from rednet.ops.geometry import Geometry, Pair


def forward(input: Tensor, weight: Tensor, output: Tensor, geometry: Geometry) -> None:
    """Adds ``weight[..., tap, :, :] * shifted input`` for each tap."""
    groups, output_size = weight.shape[1], _size(output)
    padded = _grouped(_padded(input, geometry), groups)
    total = _accumulator(output)
    grouped_total = _grouped(total, groups)
    for tap in geometry.taps():
        rows, columns = geometry.window(tap, output_size)
        grouped_total.addcmul_(padded[..., rows, columns], _tap(weight, tap))
    _store(total, output)


def grad_input(grad_output: Tensor, weight: Tensor, grad_input: Tensor, geometry: Geometry) -> None:
    """Adds ``weight[..., tap, :, :] * grad_output`` to the pixels that each tap has read."""
    groups, output_size = weight.shape[1], _size(grad_output)
    grad = _grouped(grad_output.to(accumulation_dtype(grad_output.dtype)), groups)
    padded = _padded_zeros(grad_input, geometry)
    grouped_padded = _grouped(padded, groups)
    for tap in geometry.taps():
        rows, columns = geometry.window(tap, output_size)
        grouped_padded[..., rows, columns].addcmul_(grad, _tap(weight, tap))
    (top, left), (height, width) = geometry.padding, _size(grad_input)
    grad_input.copy_(padded[..., top : top + height, left : left + width])


def grad_weight(
    grad_output: Tensor, input: Tensor, grad_weight: Tensor, geometry: Geometry
) -> None:
    """Sums ``grad_output * shifted input`` over the channels of each group, tap by tap."""
    groups, output_size = grad_weight.shape[1], _size(grad_output)
    grad = _grouped(grad_output.to(accumulation_dtype(grad_output.dtype)), groups)
    padded = _grouped(_padded(input, geometry), groups)
    for row, column in geometry.taps():
        rows, columns = geometry.window((row, column), output_size)
        grad_weight[:, :, row, column].copy_((grad * padded[..., rows, columns]).sum(dim=2))


def _size(image: Tensor) -> Pair:
    return image.shape[-2], image.shape[-1]


def _grouped(image: Tensor, groups: int) -> Tensor:
    """Views (N, C, H, W) as (N, G, C/G, H, W), which every stride allows."""
    return image.unflatten(1, (groups, image.shape[1] // groups))


def _tap(weight: Tensor, tap: Pair) -> Tensor:
    return weight[:, :, tap[0], tap[1]].unsqueeze(2)


def _padded(input: Tensor, geometry: Geometry) -> Tensor:
    vertical, horizontal = geometry.padding
    return F.pad(
        input.to(accumulation_dtype(input.dtype)), (horizontal, horizontal, vertical, vertical)
    )


def _padded_zeros(image: Tensor, geometry: Geometry) -> Tensor:
    batch, channels, height, width = image.shape
    vertical, horizontal = geometry.padding
    shape = (batch, channels, height + 2 * vertical, width + 2 * horizontal)
    layout = torch.channels_last if image.stride(1) == 1 else torch.contiguous_format
    return torch.empty(
        shape,
        dtype=accumulation_dtype(image.dtype),
        device=image.device,
        memory_format=layout,
    ).zero_()


def _accumulator(output: Tensor) -> Tensor:
    """The output itself where it is wide enough to accumulate in."""
    if output.dtype == accumulation_dtype(output.dtype):
        return output.zero_()
    return torch.zeros_like(output, dtype=accumulation_dtype(output.dtype))


def _store(total: Tensor, output: Tensor) -> None:
    if total is not output:
        output.copy_(total)


def _unsupported_reason(problem: Problem) -> None:
    return None


BACKEND = Backend("shifted", forward, grad_input, grad_weight, _unsupported_reason)
