"""Geometries and random tensors for the tests of the operator."""

from __future__ import annotations

import torch
from torch import Tensor

from rednet.ops.geometry import Geometry

GEOMETRIES = {
    "RedNet": Geometry((7, 7), (1, 1), (3, 3), (1, 1)),
    "RedNet, stride 2": Geometry((7, 7), (2, 2), (3, 3), (1, 1)),
    "3 x 3": Geometry((3, 3), (1, 1), (1, 1), (1, 1)),
    "dilated": Geometry((3, 3), (1, 1), (2, 2), (2, 2)),
    "rectangular, nothing square": Geometry((3, 2), (2, 3), (0, 1), (1, 3)),
    "even kernel": Geometry((4, 4), (1, 1), (2, 2), (1, 1)),
    "1 x 1": Geometry((1, 1), (1, 1), (0, 0), (1, 1)),
    "more padding than kernel": Geometry((2, 2), (2, 2), (3, 3), (1, 1)),
    "stride over kernel": Geometry((2, 2), (3, 3), (0, 0), (1, 1)),
}
SIZE = (9, 11)


def random_tensors(
    geometry: Geometry, batch: int = 2, channels: int = 6, groups: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and a cotangent of the output, in float64."""
    output_size = geometry.output_size(*SIZE)
    return (
        torch.randn(batch, channels, *SIZE, dtype=torch.float64),
        torch.randn(batch, groups, *geometry.kernel_size, *output_size, dtype=torch.float64),
        torch.randn(batch, channels, *output_size, dtype=torch.float64),
    )


def involution_by_loops(input: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The definition of involution, read off design and paper, one pixel and tap at a time."""
    batch, channels, height, width = input.shape
    groups, (rows, columns) = weight.shape[1], weight.shape[4:]
    output = input.new_zeros(batch, channels, rows, columns)
    for row in range(rows):
        for column in range(columns):
            for i, j in geometry.taps():
                y = row * geometry.stride[0] - geometry.padding[0] + i * geometry.dilation[0]
                x = column * geometry.stride[1] - geometry.padding[1] + j * geometry.dilation[1]
                if 0 <= y < height and 0 <= x < width:
                    kernel = weight[:, :, i, j, row, column]
                    kernel = kernel.repeat_interleave(channels // groups, dim=1)
                    output[:, :, row, column] += kernel * input[:, :, y, x]
    return output
