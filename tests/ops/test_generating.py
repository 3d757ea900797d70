"""Involution that generates its weight: the reference, the choice of a backend, the checks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rednet import ops
from rednet.ops import backends, involution2d
from rednet.ops.generating import generating_involution2d
from tests.ops.cases import GEOMETRIES, SIZE, channels_last, random_tensors
from tests.tolerances import RELATIVE_ERROR, assert_close


def _generator(geometry: Any, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Input, reduced map, matrix and bias."""
    input, weight, _ = random_tensors(geometry)
    rows = weight.shape[1] * weight.shape[2] * weight.shape[3]
    reduced = torch.randn(len(input), 5, *weight.shape[4:])
    matrix, bias = torch.randn(rows, 5), torch.randn(rows)
    return tuple(each.to(dtype) for each in (input, reduced, matrix, bias))


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("has_bias", [True, False])
def test_both_ways_agree(name: str, has_bias: bool) -> None:
    geometry = GEOMETRIES[name]
    input, reduced, matrix, bias = _generator(geometry)
    kept = bias if has_bias else None
    weight = torch.nn.functional.conv2d(reduced, matrix[:, :, None, None], kept)
    expected = involution2d(input, weight.unflatten(1, (2, *geometry.kernel_size)), *geometry[1:])
    for backend in ("shifted", "reference"):  # in two steps and in one
        with ops.backend(backend):
            actual = generating_involution2d(input, reduced, matrix, kept, *geometry)
        assert_close(actual, expected)


@pytest.mark.parametrize("dtype", RELATIVE_ERROR, ids=str)
def test_dtypes_and_layouts(dtype: torch.dtype) -> None:
    geometry = GEOMETRIES["RedNet"]
    operands = _generator(geometry, dtype)
    with ops.backend("reference"):
        expected = generating_involution2d(*(each.double() for each in operands), *geometry)
        input, *rest = operands
        actual = generating_involution2d(channels_last(input), *rest, *geometry)
    assert actual.dtype == dtype and actual.is_contiguous(memory_format=torch.channels_last)
    assert_close(actual, expected)


def test_autocast_reaches_every_operand() -> None:
    geometry = GEOMETRIES["3 x 3"]
    operands = _generator(geometry, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16), ops.backend("reference"):
        assert generating_involution2d(*operands, *geometry).dtype == torch.bfloat16


def test_only_a_forced_backend_generates_in_one_step() -> None:
    assert not backends.is_generating()
    for name, expected in (("reference", True), ("shifted", False)):
        with ops.backend(name):
            assert backends.is_generating() == expected


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(matrix=torch.zeros(18, 4)), ValueError, r"\(2, 5, 9, 11\) and \(18, 4\)"),
        (dict(matrix=torch.zeros(17, 5)), ValueError, "multiple of 9 rows"),
        (dict(bias=torch.zeros(9)), ValueError, r"\(18, 5\) and \(9,\)"),
        (dict(matrix=torch.zeros(36, 5), bias=None), ValueError, "6 channels and 4 groups"),
        (dict(reduced=torch.zeros(2, 5, 9, 10)), ValueError, "9 x 11 output pixels"),
        (dict(reduced=torch.zeros(1, 5, *SIZE)), ValueError, "same batch size"),
        (dict(bias=torch.zeros(18, device="meta")), ValueError, "all must be on cpu, got meta"),
        (dict(bias=torch.zeros(18).half()), TypeError, "input and bias must have the same dtype"),
    ],
)
def test_operands_that_do_not_fit(changes: dict, error: type[Exception], message: str) -> None:
    names = ("input", "reduced", "matrix", "bias")
    operands = dict(zip(names, _generator(GEOMETRIES["3 x 3"], torch.float32), strict=True))
    with pytest.raises(error, match=message):
        generating_involution2d(**{**operands, **changes}, kernel_size=3, padding=1)
