"""The Triton kernels in Triton's interpreter, on the CPU; test_triton.py runs this file."""

from __future__ import annotations

import pytest
import torch

from rednet.ops.geometry import Geometry
from rednet.ops.triton import backend as triton_backend
from tests.ops.cases import Case, check_operations

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CASES = {
    "RedNet": Case(Geometry((7, 7), (1, 1), (3, 3), (1, 1)), 1, 32, 2, 5, 4),
    "RedNet, stride 2": Case(Geometry((7, 7), (2, 2), (3, 3), (1, 1)), 1, 17, 1, 9, 7),
    "tails of channels, dilated": Case(Geometry((3, 3), (1, 1), (2, 4), (2, 4)), 1, 15, 5, 5, 11),
    "groups of 40, rectangular, even": Case(
        Geometry((4, 6), (2, 3), (3, 0), (3, 2)), 1, 80, 2, 13, 12
    ),
    "stride meets dilation": Case(Geometry((5, 3), (2, 2), (5, 4), (2, 4)), 1, 6, 3, 12, 19),
}


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("name", CASES)
def test_kernels_agree_with_the_reference(name: str, memory_format: torch.memory_format) -> None:
    check_operations(triton_backend, CASES[name], torch.float64, memory_format)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes(dtype: torch.dtype) -> None:
    check_operations(triton_backend, CASES["RedNet, stride 2"], dtype, torch.contiguous_format)


def test_offsets_of_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "_LARGEST_INT32", 0)
    check_operations(
        triton_backend, CASES["RedNet, stride 2"], torch.float64, torch.contiguous_format
    )
