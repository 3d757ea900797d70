"""The compiled kernel of 1 x 1 convolutions and what follows them."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rednet.ops.cpu import loader
from rednet.ops.cpu.finishing import Following
from rednet.ops.cpu.pointwise import convolve, unsupported_reason
from rednet.ops.geometry import Pair
from tests.ops.cases import BUILD_NAMES, BUILDS, channels_last

NOTHING = Following((None,) * 4, 0.0, None, False)
needs_build = pytest.mark.skipif(not BUILDS, reason="rednet was installed without a C++ compiler")


def _operands(
    shape: tuple[int, ...], filters: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and bias."""
    return (
        channels_last(torch.randn(shape, dtype=dtype)),
        torch.randn(filters, shape[1], 1, 1, dtype=dtype),
        torch.randn(filters, dtype=dtype),
    )


def _check(
    operands: tuple[Tensor, Tensor, Tensor | None], stride: Pair, following: Following
) -> None:
    """Compares with PyTorch's operators in float64."""
    exact = [None if each is None else each.double() for each in operands]
    expected = F.conv2d(*exact, stride)
    if following.statistics[1] is not None:
        statistics = (each.double() for each in following.statistics)
        expected = F.batch_norm(expected, *statistics, eps=following.epsilon)
    if following.addend is not None:
        expected = expected + following.addend
    if following.rectifies:
        expected = expected.relu()
    actual = convolve(*operands, stride, following)
    assert actual.dtype == operands[0].dtype
    assert actual.is_contiguous(memory_format=torch.channels_last)
    tolerance = 1e-12 if actual.dtype == torch.float64 else 1e-5
    limit = tolerance * operands[0].shape[1] ** 0.5 * 10
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=limit)


@pytest.mark.parametrize("build", BUILDS, ids=BUILD_NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("shape", "filters", "stride"),
    [
        ((2, 7, 5, 5), 5, (1, 1)),
        ((1, 64, 7, 7), 256, (1, 1)),
        ((1, 1, 1, 1), 1, (1, 1)),
        ((1, 2048, 3, 3), 72, (1, 1)),
        ((1, 16, 40, 41), 24, (1, 1)),
        ((3, 33, 7, 9), 50, (2, 2)),
        ((2, 40, 13, 6), 100, (3, 1)),
    ],
)
def test_every_instruction_set_is_right(
    build: Path,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    filters: int,
    stride: Pair,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled = ctypes.CDLL(str(build))
    monkeypatch.setattr(loader, "load", lambda: compiled)
    operands = _operands(shape, filters, dtype)
    _check(operands, stride, NOTHING)
    _check((*operands[:2], None), stride, NOTHING)
    variance, *statistics = torch.rand(4, filters, dtype=dtype).add(0.5).unbind()
    addend = channels_last(torch.randn_like(convolve(*operands, stride, NOTHING)))
    norm = (statistics[0], variance, *statistics[1:])
    _check(operands, stride, Following(norm, 1e-3, addend, True))


@needs_build
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 70),
    filters=st.integers(1, 70),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    rectifies=st.booleans(),
)
def test_every_shape(
    batch: int,
    channels: int,
    filters: int,
    height: int,
    width: int,
    stride: Pair,
    rectifies: bool,
) -> None:
    operands = _operands((batch, channels, height, width), filters, torch.float32)
    _check(operands, stride, NOTHING._replace(rectifies=rectifies))


@needs_build
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    operands = _operands((2, 48, 30, 30), 200, torch.float32)
    threads = torch.get_num_threads()
    outputs = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            outputs.append(convolve(*operands, (1, 1), NOTHING))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(each, outputs[0]) for each in outputs)


@needs_build
def test_what_is_not_a_number_stays_with_its_pixel() -> None:
    input, weight, _ = _operands((1, 16, 3, 3), 20, torch.float32)
    input[0, 3, 1, 1] = torch.nan
    output = convolve(input, weight, None, (1, 1), NOTHING._replace(rectifies=True))
    expected = torch.zeros(3, 3, dtype=torch.bool)
    expected[1, 1] = True
    assert torch.equal(output.isnan(), expected.expand(1, 20, 3, 3))


@needs_build
def test_what_it_does_not_support(monkeypatch: pytest.MonkeyPatch) -> None:
    input, weight, bias = _operands((2, 8, 5, 7), 4, torch.float32)
    for operands in (
        (input.contiguous(), weight, bias),
        (input[:0], weight, bias),
        (input[0], weight, bias),
        (input, weight.double(), bias),
        (input, weight, bias.double()),
        (input, weight, bias[:2]),
        (input, weight, torch._neg_view(bias)),
        (input, torch._neg_view(weight), bias),
        (input, weight.to("meta"), bias),
        (input, weight[:, :4], bias),
        (input, weight.expand(4, 8, 3, 3), bias),
        (input.bfloat16(), weight.bfloat16(), bias.bfloat16()),
    ):
        assert unsupported_reason(*operands) is not None
    monkeypatch.setattr(loader, "multiplies_fast", lambda: False)
    assert "faster" in str(unsupported_reason(input, weight, bias))
