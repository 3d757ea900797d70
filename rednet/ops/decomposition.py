"""Involution composed of PyTorch's own operators, for where an operator of our own cannot go.

That is ONNX, torch.func's derivatives and forward-mode differentiation. Of the compositions that
were tried in ONNX Runtime this one was the fastest on large images (docs/deployment.md). It is
differentiable, and leaves batch, height and width free in a recorded graph.
"""

from __future__ import annotations

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from rednet.ops.dtypes import accumulation_dtype
from rednet.ops.geometry import Geometry


def involution2d(input: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Computes what ``torch.ops.rednet.involution2d`` does.

    A convolution with one-hot kernels lays the Kw pixels that a row of the window reads side by
    side, as channels; then each row of the window is a slice, a product and a sum over these
    channels.

    Args:
        input: Shape (N, C, H, W).
        weight: Shape (N, G, Kh, Kw, Ho, Wo).
        geometry: The window.

    Returns:
        Shape (N, C, Ho, Wo).
    """
    dtype, groups = accumulation_dtype(input.dtype), weight.shape[1]
    weight = weight.to(dtype)
    columns = _columns(input.to(dtype), geometry)
    columns = columns.reshape(input.shape[0], groups, input.shape[1] // groups, *columns.shape[1:])
    rows, stride, dilation = int(weight.shape[2]), geometry.stride[0], geometry.dilation[0]
    terms = []
    for row in range(rows):
        start, end = row * dilation, (row + 1 - rows) * dilation or None
        window = columns[..., start:end:stride, :]
        terms.append((window * weight[:, :, row].unsqueeze(2)).sum(dim=3))
    total = reduce(torch.add, terms)
    return total.reshape(input.shape[0], input.shape[1], *weight.shape[4:]).to(input.dtype)


def _columns(input: Tensor, geometry: Geometry) -> Tensor:
    """Shape (N * C, Kw, H + 2 * padding, Wo): for each output column the Kw pixels it reads."""
    width, (_, stride), padding, (_, dilation) = int(geometry.kernel_size[1]), *geometry[1:]
    one_hot = torch.eye(width, dtype=input.dtype, device=input.device).view(width, 1, 1, width)
    planes = input.flatten(0, 1).unsqueeze(1)
    return F.conv2d(planes, one_hot, None, (1, stride), padding, (1, dilation))
