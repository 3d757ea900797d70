"""Involution that generates its weight: the reference, the choice of a backend, the checks."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rednet import ops
from rednet.ops import backends, generating, involution2d
from rednet.ops.backends import Problem
from rednet.ops.cpu import loader
from rednet.ops.generating import generating_involution2d
from rednet.ops.geometry import Geometry
from tests.ops.cases import (
    BUILD_NAMES,
    BUILDS,
    GEOMETRIES,
    SIZE,
    channels_last,
    random_tensors,
)
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
    in_one_step = ("reference", *(["cpu"] if BUILDS else []))
    for backend in ("shifted", *in_one_step):
        with ops.backend(backend):
            actual = generating_involution2d(input, reduced, matrix, kept, *geometry)
        assert_close(actual, expected)


def test_the_operator_in_compiled_graphs() -> None:
    geometry = GEOMETRIES["RedNet"]
    operands = _generator(geometry)
    operator = torch.ops.rednet.generating_involution2d
    window = [list(numbers) for numbers in geometry]
    assert torch.equal(operator(*operands, *window), generating_involution2d(*operands, *geometry))
    if hasattr(torch.library, "opcheck"):  # torch >= 2.4
        torch.library.opcheck(operator.default, (*operands, *window))
    with pytest.raises(ValueError, match="matrix and bias must have"):
        operator(operands[0], operands[1], operands[2][1:], None, *window)


@pytest.mark.skipif(not hasattr(torch.library, "register_vmap"), reason="vmap loops by itself")
@pytest.mark.parametrize("mapped", [(0, 0, None, None), (None, 1, 0, 0), (0, None, None, 0)])
def test_mapped_by_torch_func(
    mapped: tuple[int | None, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = GEOMETRIES["3 x 3"]
    operands = _generator(geometry)
    window = tuple(map(tuple, geometry))

    def generate(*operands: Tensor) -> Tensor:
        return torch.ops.rednet.generating_involution2d(*operands, *window)

    given = [
        each if dim is None else torch.stack([each, each.flip(0)], dim)
        for each, dim in zip(operands, mapped, strict=True)
    ]
    expected = []
    for i in (0, 1):
        sides = zip(given, mapped, strict=True)
        expected.append(
            generate(*(each if dim is None else each.select(dim, i) for each, dim in sides))
        )
    calls, run = [], generating._generate
    monkeypatch.setattr(generating, "_generate", lambda *given: (calls.append(1), run(*given))[1])
    assert_close(torch.func.vmap(generate, mapped)(*given), torch.stack(expected))
    assert len(calls) <= 1


def test_a_bias_may_change_before_the_backward_pass() -> None:
    geometry = GEOMETRIES["3 x 3"]
    operands = [each.requires_grad_() for each in _generator(geometry)]
    output = generating_involution2d(*operands, *geometry).sum()
    expected = torch.autograd.grad(output, operands, retain_graph=True)
    with torch.no_grad():
        operands[3].add_(1)
    torch.testing.assert_close(torch.autograd.grad(output, operands), expected)


def test_a_profiler_lists_it() -> None:
    geometry = GEOMETRIES["RedNet"]
    with torch.profiler.profile() as profile:
        generating_involution2d(*_generator(geometry), *geometry)
    assert "rednet::generating_involution2d" in {event.key for event in profile.key_averages()}


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


@pytest.mark.parametrize("name", ["3 x 3", "RedNet"])
@pytest.mark.parametrize("has_bias", [True, False])
def test_gradients_of_any_order(name: str, has_bias: bool) -> None:
    geometry = GEOMETRIES[name]
    operands = [each[..., :6, :6] if each.dim() == 4 else each for each in _generator(geometry)]
    size = geometry.output_size(*operands[0].shape[2:])
    operands[1] = torch.randn(len(operands[0]), 5, *size, dtype=torch.float64)
    operands = [each.clone().requires_grad_() for each in operands[: 4 if has_bias else 3]]

    def generate(*given: Tensor) -> Tensor:
        bias = given[3] if has_bias else None
        return generating_involution2d(*given[:3], bias, *geometry)

    assert torch.autograd.gradcheck(generate, operands, fast_mode=True)
    assert torch.autograd.gradgradcheck(generate, operands, fast_mode=True)


def test_many_gradients_at_once() -> None:
    operands = [each.requires_grad_() for each in _generator(GEOMETRIES["3 x 3"])]
    output = generating_involution2d(*operands, *GEOMETRIES["3 x 3"])
    grads = torch.randn(2, *output.shape, dtype=output.dtype)
    batched = torch.autograd.grad(output, operands, grads, True, is_grads_batched=True)
    for actual, *expected in zip(
        batched, *(torch.autograd.grad(output, operands, each, True) for each in grads), strict=True
    ):
        assert_close(actual, torch.stack(expected))


def test_autocast_reaches_every_operand() -> None:
    geometry = GEOMETRIES["3 x 3"]
    operands = _generator(geometry, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16), ops.backend("reference"):
        assert generating_involution2d(*operands, *geometry).dtype == torch.bfloat16


def test_some_backends_generate_in_one_step() -> None:
    for name, expected in (("reference", True), ("cpu", True), ("shifted", False)):
        with ops.backend(name):
            assert backends.is_generating() == expected


@pytest.mark.parametrize("build", BUILDS, ids=BUILD_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
# Rows of more pixels than a tile has, several rows in a tile, rows of less than a vector.
@pytest.mark.parametrize("size", [(3, 150), (17, 13), (9, 2)])
def test_every_instruction_set_is_right(
    build: Path, dtype: torch.dtype, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    input, reduced = torch.randn(2, 32, *size), torch.randn(2, 3, *size)
    operands = [each.to(dtype) for each in (input, reduced, torch.randn(98, 3), torch.randn(98))]
    with ops.backend("reference"):
        expected = generating_involution2d(*(each.double() for each in operands), 7, padding=3)
    compiled = ctypes.CDLL(str(build))
    monkeypatch.setattr(loader, "load", lambda: compiled)
    input, reduced, *rest = operands
    for arranged in (input, channels_last(input)):
        actual = generating_involution2d(arranged, channels_last(reduced), *rest, 7, padding=3)
        assert_close(actual, expected)


def _before_a_locked_page(numbers: Tensor) -> Tensor:
    """The numbers in memory whose neighbor in front may not be read."""
    memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    guarded = torch.frombuffer(
        memory, dtype=numbers.dtype, count=numbers.numel(), offset=mmap.PAGESIZE
    )
    page = ctypes.c_void_p(guarded.data_ptr() - mmap.PAGESIZE)
    assert ctypes.CDLL(None).mprotect(page, mmap.PAGESIZE, 0) == 0
    return guarded.view(numbers.shape).copy_(numbers)


@pytest.mark.parametrize("build", BUILDS, ids=BUILD_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_nothing_is_read_in_front_of_a_map(
    build: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = ctypes.CDLL(str(build))
    monkeypatch.setattr(loader, "load", lambda: compiled)
    matrix = torch.randn(9, 1, dtype=dtype, requires_grad=True)
    for side in (17, 33, 37, 47):  # a few pixels more or less than some vectors
        input, reduced = (torch.randn(1, channels, 1, side, dtype=dtype) for channels in (4, 1))
        guarded = _before_a_locked_page(reduced)
        with ops.backend("reference"):
            expected = _output_and_gradients(input, reduced, matrix)
        for actual, each in zip(
            _output_and_gradients(input, guarded, matrix), expected, strict=True
        ):
            assert_close(actual, each)


def _output_and_gradients(input: Tensor, reduced: Tensor, matrix: Tensor) -> list[Tensor]:
    operands = input.requires_grad_(), reduced.requires_grad_(), matrix
    output = generating_involution2d(*operands, None, 3, 1, 1)
    return [output.detach(), *torch.autograd.grad(output, operands, input.detach())]


def test_operands_without_numbers() -> None:
    input, reduced, matrix, bias = _generator(GEOMETRIES["3 x 3"])
    output = generating_involution2d(input[:0], reduced[:0], matrix, bias, 3, padding=1)
    assert output.shape == (0, *input.shape[1:])


@pytest.mark.skipif(not BUILDS, reason="rednet was installed without a C++ compiler")
def test_compiled_kernels_generate_where_they_can() -> None:
    geometry = Geometry((3, 3), (1, 1), (1, 1), (1, 1))
    problem = Problem(
        *("generate", torch.device("cpu"), torch.float32, 1, 16, 1, (4, 4), (4, 4), geometry)
    )
    assert backends.select_fused(problem) is not None
    assert backends.select_fused(problem._replace(dtype=torch.bfloat16)) is None
    small = problem._replace(image=(3, 5), output=(3, 5))
    assert backends.select_fused(small) is None


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
