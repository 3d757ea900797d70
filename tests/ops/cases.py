"""Geometries, random tensors and their layouts for the tests of the operator."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rednet.ops import involution2d, reference
from rednet.ops.cpu import loader
from rednet.ops.geometry import Geometry
from tests.tolerances import assert_close

# The builds of the compiled CPU kernels that this processor can run.
BUILDS = loader._candidates()
BUILD_NAMES = [path.name.partition(".")[0] for path in BUILDS]

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


def output_and_gradients(
    input: Tensor, weight: Tensor, cotangent: Tensor, geometry: Geometry
) -> list[Tensor]:
    """Output, gradient of the input and gradient of the weight."""
    input, weight = input.detach().requires_grad_(), weight.detach().requires_grad_()
    output = involution2d(input, weight, *geometry[1:])
    return [output.detach(), *torch.autograd.grad(output, (input, weight), cotangent)]


def channels_last(tensor: Tensor) -> Tensor:
    """The dimensions between the first and the last two become the innermost."""
    middle = tuple(range(1, tensor.dim() - 2))
    order = (0, tensor.dim() - 2, tensor.dim() - 1, *middle)
    back = tuple(sorted(range(tensor.dim()), key=order.__getitem__))
    return tensor.permute(order).contiguous().permute(back)


def transposed(tensor: Tensor) -> Tensor:
    """The last two dimensions change places in memory."""
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


def sliced(tensor: Tensor) -> Tensor:
    """Every second element of a larger tensor, from the second on; between them nothing usable."""
    larger = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), torch.nan)
    larger[..., 1::2] = tensor
    return larger[..., 1::2]


class Case(NamedTuple):
    """A problem for all three operations."""

    geometry: Geometry
    batch: int
    channels: int
    groups: int
    height: int
    width: int

    def operands(
        self, dtype: torch.dtype, memory_format: torch.memory_format, device: torch.device | str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Input, weight and a gradient of the output, rounded to the dtype."""
        size = self.geometry.output_size(self.height, self.width)
        taps = self.geometry.kernel_size[0] * self.geometry.kernel_size[1]

        def draw(channels: int, *size: int) -> Tensor:
            planes = torch.randn(self.batch, channels, *size, dtype=torch.float64).to(device, dtype)
            return planes.contiguous(memory_format=memory_format)

        weight = draw(self.groups * taps, *size)
        return (
            draw(self.channels, self.height, self.width),
            weight.unflatten(1, (self.groups, *self.geometry.kernel_size)),
            draw(self.channels, *size),
        )


def random_case(widths: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)) -> Case:
    """Anything: rectangular, strided, dilated, with tails of channels; the output is not empty."""

    def pair(low: int, high: int) -> tuple[int, int]:
        return random.randint(low, high), random.randint(low, high)

    kernel = random.randint(1, 8), random.choice(widths)
    geometry = Geometry(kernel, pair(1, 3), pair(0, 4), pair(1, 3))
    least = (
        max(1, geometry.dilation[side] * (kernel[side] - 1) + 1 - 2 * geometry.padding[side])
        for side in (0, 1)
    )
    height, width = (side + random.randint(0, 12) for side in least)
    groups, group_channels = random.randint(1, 5), random.choice((1, 3, 8, 16, 24))
    return Case(geometry, random.randint(1, 2), groups * group_channels, groups, height, width)


def check_operations(
    backend: Any,
    case: Case,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    device: torch.device | str = "cpu",
) -> None:
    """Compares a backend's three operations with the float64 reference; results start as NaN."""
    input, weight, grad = case.operands(dtype, memory_format, device)
    for operation, first, second, like in (
        ("forward", input, weight, grad),
        ("grad_input", grad, weight, input),
        ("grad_weight", grad, input, weight),
    ):
        expected = torch.empty_like(like, dtype=torch.float64)
        getattr(reference, operation)(first.double(), second.double(), expected, case.geometry)
        actual = torch.full_like(like, torch.nan)
        getattr(backend, operation)(first, second, actual, case.geometry)
        assert_close(actual, expected)


def check_generate(
    backend: Any,
    case: Case,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    reduced_channels: int,
    *,
    has_bias: bool = True,
    device: torch.device | str = "cpu",
) -> None:
    """Compares a backend that generates the weight with the float64 reference."""
    input, weight, like = case.operands(dtype, memory_format, device)
    rows = weight[0, ..., 0, 0].numel()

    def draw(*size: int) -> Tensor:
        return torch.randn(size, dtype=torch.float64).to(device, dtype)

    reduced = draw(case.batch, reduced_channels, *weight.shape[4:])
    reduced = reduced.contiguous(memory_format=memory_format)
    bias = draw(rows) if has_bias else None
    operands = (input, reduced, draw(rows, reduced_channels), bias)
    expected = torch.empty_like(like, dtype=torch.float64)
    wide = (None if each is None else each.double() for each in operands)
    reference.generate(*wide, expected, case.geometry)
    actual = torch.full_like(like, torch.nan)
    backend.generate(*operands, actual, case.geometry)
    assert_close(actual, expected)
