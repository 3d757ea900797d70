"""The compiled gradients of involution whose weight is never made as a whole."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rednet import ops
from rednet.ops import involution2d
from rednet.ops.cpu import generating, loader
from rednet.ops.generating import generating_involution2d
from rednet.ops.geometry import Geometry
from tests.ops.cases import BUILD_NAMES, BUILDS, GEOMETRIES, channels_last, sliced, transposed
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(not BUILDS, reason="rednet was installed without a C++ compiler")

SAME = Geometry((3, 3), (1, 1), (1, 1), (1, 1))


class Operands:
    """Random operands of a call and the gradient of its output, in float64."""

    def __init__(
        self,
        geometry: Geometry,
        image: tuple[int, ...] = (2, 6, 9, 11),
        groups: int = 2,
        reduced: int = 5,
    ) -> None:
        self.geometry = geometry
        size = geometry.output_size(*image[2:])
        rows = groups * geometry.kernel_size[0] * geometry.kernel_size[1]
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.input, self.reduced = draw(*image), draw(image[0], reduced, *size)
        self.matrix, self.bias = draw(rows, reduced), draw(rows)
        self.grad = draw(*image[:2], *size)

    def expected(self) -> tuple[Tensor, ...]:
        """The gradients of input, reduced map, matrix and bias in two steps, by the reference."""
        operands = [self.input, self.reduced, self.matrix, self.bias]
        operands = [each.clone().requires_grad_() for each in operands]
        input, reduced, matrix, bias = operands
        weight = F.conv2d(reduced, matrix[:, :, None, None], bias)
        weight = weight.unflatten(1, (-1, *self.geometry.kernel_size))
        with ops.backend("reference"):
            output = involution2d(input, weight, *self.geometry[1:])
            return torch.autograd.grad(output, operands, self.grad)

    def converted(self, dtype: torch.dtype, arrange: Any = lambda tensor: tensor) -> tuple:
        """The maps, gradient first, in a layout and all in a dtype; then matrix and bias."""
        maps = (arrange(each.to(dtype)) for each in (self.grad, self.input, self.reduced))
        return *maps, self.matrix.to(dtype), self.bias.to(dtype)

    def actual(self, *operands: Tensor) -> tuple[Tensor, ...]:
        """The gradients by the compiled kernels, whether or not they are the faster way."""
        grad, input, reduced, matrix, bias = operands
        grad_input = torch.empty_like(input)
        generating.generate_grad_input(grad, reduced, matrix, bias, grad_input, self.geometry)
        return grad_input, *generating.grad_generator(grad, input, reduced, matrix, self.geometry)


def assert_all_close(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for each, reference in zip(actual, expected, strict=True):
        assert_close(each, reference)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("arrange", [Tensor.contiguous, channels_last])
def test_geometries(name: str, arrange: Any) -> None:
    operands = Operands(GEOMETRIES[name])
    assert_all_close(
        operands.actual(*operands.converted(torch.float64, arrange)), operands.expected()
    )


@pytest.mark.parametrize("build", BUILDS, ids=BUILD_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
# Rows of more pixels than a tile has, several rows in a tile, rows of less than a vector.
@pytest.mark.parametrize("size", [(3, 150), (17, 13), (9, 2)])
def test_every_instruction_set(
    build: Path, dtype: torch.dtype, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = ctypes.CDLL(str(build))
    monkeypatch.setattr(loader, "load", lambda: compiled)
    geometry = Geometry((7, 7), (1, 1), (3, 3), (1, 1))
    operands = Operands(geometry, (2, 32, *size), 2, 3)
    expected = operands.expected()
    for arrange in (Tensor.contiguous, channels_last):
        assert_all_close(operands.actual(*operands.converted(dtype, arrange)), expected)


@pytest.mark.parametrize(("channels", "groups"), [(3, 3), (40, 2), (17, 1)])
@pytest.mark.parametrize("reduced", [1, 16, 35])
def test_channels(channels: int, groups: int, reduced: int) -> None:
    operands = Operands(SAME, (2, channels, 5, 18), groups, reduced)
    expected = operands.expected()
    for arrange in (Tensor.contiguous, channels_last):
        given = operands.converted(torch.float64, arrange)
        assert_all_close(operands.actual(*given), expected)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("arrange", [sliced, transposed])
def test_maps_of_any_strides(stride: int, arrange: Any) -> None:
    operands = Operands(SAME._replace(stride=(stride, stride)))
    given = operands.converted(torch.float64, arrange)
    assert_all_close(operands.actual(*given), operands.expected())
    operands.grad = torch.ones(1, dtype=torch.float64).expand_as(operands.grad)
    assert_all_close(operands.actual(operands.grad, *given[1:]), operands.expected())


def test_blocks_of_rows_and_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generating, "_BLOCK_BYTES", 16384)
    operands = Operands(SAME, (3, 32, 41, 12), 2, 4)
    given = operands.converted(torch.float32, channels_last)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(operands.actual(*given))
    finally:
        torch.set_num_threads(threads)
    assert_all_close(results[0], operands.expected())
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_autograd_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    operands = Operands(SAME)
    expected = operands.expected()
    grad, *given = operands.converted(torch.float64)
    for frozen in (None, 0, 1, 2, 3):
        leaves = [each.clone().requires_grad_(i != frozen) for i, each in enumerate(given)]
        with torch.profiler.profile() as profile:
            generating_involution2d(*leaves, *SAME).backward(grad)
        for i, (each, reference) in enumerate(zip(leaves, expected, strict=True)):
            if i == frozen:
                assert each.grad is None
            else:
                assert_close(each.grad, reference)
        names = {event.key for event in profile.key_averages()}
        assert ("rednet::generate_grad_input" in names) == (frozen != 0)
        assert "rednet::grad_generator" in names
        assert "rednet::involution2d_grad_weight" not in names


def test_narrow_maps_take_two_steps() -> None:
    operands = Operands(SAME, (2, 6, 9, 9))
    grad, *given = operands.converted(torch.float64)
    leaves = [each.requires_grad_() for each in given]
    with torch.profiler.profile() as profile:
        generating_involution2d(*leaves, *SAME).backward(grad)
    assert "rednet::involution2d_grad_weight" in {event.key for event in profile.key_averages()}
    for each, reference in zip(leaves, operands.expected(), strict=True):
        assert_close(each.grad, reference)


def test_unpacked_operands_that_are_not_plain_take_two_steps() -> None:
    operands = Operands(SAME)
    grad, *given = operands.converted(torch.float64)
    leaves = [each.requires_grad_() for each in given]

    def negate(tensor: Tensor) -> Tensor:
        return torch._neg_view(-tensor)

    with torch.autograd.graph.saved_tensors_hooks(Tensor.detach, negate):
        output = generating_involution2d(*leaves, *SAME)
    assert_all_close(torch.autograd.grad(output, leaves, grad), operands.expected())
