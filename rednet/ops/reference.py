"""The reference backend: involution by unfolding, slow and plain, the oracle of every test."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rednet.ops.backends import Backend, Problem
from rednet.ops.dtypes import accumulation_dtype
from rednet.ops.geometry import Geometry


def forward(input: Tensor, weight: Tensor, output: Tensor, geometry: Geometry) -> None:
    """Multiplies patches (N, G, C/G, K*K, Ho*Wo) by the weights and sums over the taps."""
    patches = _patches(input, weight.shape[1], geometry)
    result = (patches * _flat_weight(weight)).sum(dim=3)
    output.copy_(result.reshape(output.shape))


def grad_input(grad_output: Tensor, weight: Tensor, grad_input: Tensor, geometry: Geometry) -> None:
    """Folds the weighted output gradients back onto the input."""
    batch, channels = grad_output.shape[:2]
    grad = _grouped_pixels(grad_output, weight.shape[1]) * _flat_weight(weight)
    columns = grad.reshape(batch, channels * grad.shape[3], grad.shape[4])
    folded = F.fold(
        columns,
        tuple(grad_input.shape[2:]),
        geometry.kernel_size,
        dilation=geometry.dilation,
        padding=geometry.padding,
        stride=geometry.stride,
    )
    grad_input.copy_(folded)


def grad_weight(
    grad_output: Tensor, input: Tensor, grad_weight: Tensor, geometry: Geometry
) -> None:
    """Sums patches times output gradients over the channels of each group."""
    groups = grad_weight.shape[1]
    result = (_patches(input, groups, geometry) * _grouped_pixels(grad_output, groups)).sum(dim=2)
    grad_weight.copy_(result.reshape(grad_weight.shape))


def generate(
    input: Tensor,
    reduced: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    output: Tensor,
    geometry: Geometry,
) -> None:
    """Multiplies the reduced map by the matrix, which makes the weight, and applies it."""
    dtype = accumulation_dtype(input.dtype)
    weight = torch.einsum("kr,nrhw->nkhw", matrix.to(dtype), reduced.to(dtype))
    if bias is not None:
        weight = weight + bias.to(dtype)[:, None, None]
    forward(input, weight.unflatten(1, (-1, *geometry.kernel_size)), output, geometry)


def _patches(input: Tensor, groups: int, geometry: Geometry) -> Tensor:
    batch, channels = input.shape[:2]
    columns = F.unfold(
        input.to(accumulation_dtype(input.dtype)),
        geometry.kernel_size,
        dilation=geometry.dilation,
        padding=geometry.padding,
        stride=geometry.stride,
    )
    taps = geometry.kernel_size[0] * geometry.kernel_size[1]
    return columns.reshape(batch, groups, channels // groups, taps, columns.shape[-1])


def _grouped_pixels(grad_output: Tensor, groups: int) -> Tensor:
    batch, channels = grad_output.shape[:2]
    grad = grad_output.to(accumulation_dtype(grad_output.dtype))
    pixels = grad.shape[2] * grad.shape[3]
    return grad.reshape(batch, groups, channels // groups, 1, pixels)


def _flat_weight(weight: Tensor) -> Tensor:
    return weight.to(accumulation_dtype(weight.dtype)).flatten(4).flatten(2, 3).unsqueeze(2)


def _unsupported_reason(problem: Problem) -> None:
    return None


BACKEND = Backend(
    "reference",
    forward,
    grad_input,
    grad_weight,
    _unsupported_reason,
    generate,
    on_request=True,
)
