"""The Triton kernels in Triton's interpreter, on the CPU; test_triton.py runs this file."""

from __future__ import annotations

import pytest
import torch

from rednet.ops.geometry import Geometry
from rednet.ops.triton import backend as triton_backend
from tests.ops.cases import Case, check_generate, check_operations

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CASES = {
    "RedNet": Case(Geometry((7, 7), (1, 1), (3, 3), (1, 1)), 1, 32, 2, 5, 4),
    "RedNet, stride 2": Case(Geometry((7, 7), (2, 2), (3, 3), (1, 1)), 1, 17, 1, 9, 7),
    "tails of channels, dilated": Case(Geometry((3, 3), (1, 1), (2, 4), (2, 4)), 1, 15, 5, 5, 11),
    "groups of 24, rectangular, even": Case(
        Geometry((4, 6), (2, 3), (3, 0), (3, 2)), 1, 48, 2, 8, 14
    ),
    "stride meets dilation": Case(Geometry((5, 3), (2, 2), (5, 4), (2, 4)), 1, 6, 3, 12, 19),
}


# Every case once, in alternating formats: both are strides to the kernel.
@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("RedNet", "channels_last"),
        ("RedNet, stride 2", "contiguous"),
        ("tails of channels, dilated", "channels_last"),
        ("groups of 24, rectangular, even", "contiguous"),
        ("stride meets dilation", "channels_last"),
    ],
)
def test_kernels_agree_with_the_reference(name: str, format: str) -> None:
    check_operations(triton_backend, CASES[name], torch.float64, FORMATS[format])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes(dtype: torch.dtype) -> None:
    case = CASES["tails of channels, dilated"]
    check_operations(triton_backend, case, dtype, torch.contiguous_format)


def test_offsets_of_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "_LARGEST_INT32", 0)
    case = CASES["tails of channels, dilated"]
    check_operations(triton_backend, case, torch.float64, torch.contiguous_format)


# Both formats again, the other way round.
@pytest.mark.parametrize(
    ("name", "reduced_channels", "format"),
    [
        ("RedNet", 8, "contiguous"),
        ("RedNet, stride 2", 4, "channels_last"),
        ("tails of channels, dilated", 5, "contiguous"),
        ("groups of 24, rectangular, even", 20, "channels_last"),
        ("stride meets dilation", 33, "contiguous"),
    ],
)
def test_kernels_that_are_generated(name: str, reduced_channels: int, format: str) -> None:
    check_generate(triton_backend, CASES[name], torch.float64, FORMATS[format], reduced_channels)


# Not bfloat16, whose bits the interpreter's matrix product takes for integers.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_other_dtypes_of_kernels_that_are_generated(dtype: torch.dtype) -> None:
    case = CASES["tails of channels, dilated"]
    check_generate(triton_backend, case, dtype, torch.channels_last, 6, has_bias=False)


def test_generating_with_offsets_of_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "_LARGEST_INT32", 0)
    case = CASES["tails of channels, dilated"]
    check_generate(triton_backend, case, torch.float64, torch.contiguous_format, 7)
