from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rednet.ops.geometry import Geometry, pair
from tests.ops.cases import GEOMETRIES


@pytest.mark.parametrize("value", [3, (3, 3), [3, 3], torch.Size([3, 3])])
def test_pair_reads_an_int_or_two(value: object) -> None:
    assert pair("stride", value, minimum=1) == (3, 3)


@pytest.mark.parametrize("value", [True, 1.5, "12", None, (1, 2.0), torch.ones(2)])
def test_pair_refuses_what_is_no_int(value: object) -> None:
    with pytest.raises(TypeError, match="stride must be an int or a pair of ints, got"):
        pair("stride", value, minimum=1)


@pytest.mark.parametrize("value", [(1, 2, 3), (), (1,)])
def test_pair_refuses_other_lengths(value: tuple) -> None:
    with pytest.raises(ValueError, match="stride must be an int or a pair of ints, got"):
        pair("stride", value, minimum=1)


@pytest.mark.parametrize("value", [0, (1, 0), -1])
def test_pair_refuses_what_is_too_small(value: object) -> None:
    with pytest.raises(ValueError, match="stride must be at least 1, got"):
        pair("stride", value, minimum=1)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("size", [(9, 11), (13, 7), (8, 8)])
def test_output_size_is_the_convolutions(geometry: Geometry, size: tuple[int, int]) -> None:
    kernel = torch.ones(1, 1, *geometry.kernel_size)
    expected = F.conv2d(torch.ones(1, 1, *size), kernel, None, *geometry[1:]).shape[2:]
    assert geometry.output_size(*size) == tuple(expected)


def test_window_selects_one_input_pixel_an_output() -> None:
    geometry = Geometry((3, 3), (2, 3), (0, 0), (2, 1))
    rows, columns = geometry.window((1, 2), (4, 2))
    assert list(range(100))[rows] == [2, 4, 6, 8]
    assert list(range(100))[columns] == [2, 5]
