"""The operator's contract, for every backend that serves this machine's CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from rednet import ops
from rednet.ops import involution2d
from rednet.ops.geometry import Geometry
from tests.ops.cases import (
    GEOMETRIES,
    channels_last,
    involution_by_loops,
    output_and_gradients,
    random_tensors,
    sliced,
    transposed,
)
from tests.tolerances import RELATIVE_ERROR, assert_close

BACKENDS = [name for name, reason in ops.explain_backends("cpu").items() if reason is None]
DTYPES = list(RELATIVE_ERROR)
SMALL = GEOMETRIES["rectangular, nothing square"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with ops.backend(request.param):
        yield request.param


def _reference(*arguments: object) -> list[Tensor]:
    with ops.backend("reference"):
        return output_and_gradients(*arguments)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_forward_is_the_definition(backend: str, geometry: Geometry) -> None:
    input, weight, _ = random_tensors(geometry)
    output = involution2d(input, weight, *geometry[1:])
    assert_close(output, involution_by_loops(input, weight, geometry))


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_as_exact_as_it_can_be(
    backend: str, dtype: torch.dtype, geometry: Geometry
) -> None:
    rounded = [tensor.to(dtype) for tensor in random_tensors(geometry)]
    expected = _reference(*(tensor.double() for tensor in rounded), geometry)
    for actual, exact in zip(output_and_gradients(*rounded, geometry), expected, strict=True):
        assert actual.dtype == dtype
        assert_close(actual, exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sixteen_bits_accumulate_in_float32(backend: str, dtype: torch.dtype) -> None:
    # 1024 + 48 halves: a 16-bit sum would stop growing at the first half.
    input = torch.full((1, 1, 7, 7), 0.5, dtype=dtype)
    input[..., 0, 0] = 1024
    weight = torch.ones(1, 1, 7, 7, 1, 1, dtype=dtype)
    assert involution2d(input, weight).item() == torch.tensor(1048.0).to(dtype).item()


@pytest.mark.parametrize("geometry", [GEOMETRIES["3 x 3"], SMALL], ids=["3 x 3", "rectangular"])
def test_gradients_of_first_and_second_order(backend: str, geometry: Geometry) -> None:
    input, weight, _ = random_tensors(geometry, batch=1, channels=2, groups=1)
    rows, columns = geometry.output_size(5, 6)
    arguments = tuple(
        tensor.clone().requires_grad_()
        for tensor in (input[..., :5, :6], weight[..., :rows, :columns])
    )

    def operator(input: Tensor, weight: Tensor) -> Tensor:
        return involution2d(input, weight, *geometry[1:])

    assert torch.autograd.gradcheck(operator, arguments)
    assert torch.autograd.gradgradcheck(operator, arguments, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spread", [sliced, transposed])
def test_any_strides_give_the_right_answer(
    backend: str, dtype: torch.dtype, spread: object
) -> None:
    tensors = [tensor.to(dtype) for tensor in random_tensors(SMALL)]
    expected = _reference(*(tensor.double() for tensor in tensors), SMALL)
    for actual, exact in zip(
        output_and_gradients(*map(spread, tensors), SMALL), expected, strict=True
    ):
        assert_close(actual, exact)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_channels_last_in_channels_last_out(backend: str, geometry: Geometry) -> None:
    tensors = [tensor.float() for tensor in random_tensors(geometry)]
    expected = _reference(*(tensor.double() for tensor in tensors), geometry)
    results = output_and_gradients(*map(channels_last, tensors), geometry)
    for actual, exact in zip(results, expected, strict=True):
        assert_close(actual, exact)
    if results[0].shape[2:] != (1, 1):
        assert results[0].is_contiguous(memory_format=torch.channels_last)
    assert results[1].is_contiguous(memory_format=torch.channels_last)


def test_an_expanded_gradient_is_read_right(backend: str) -> None:
    input, weight, cotangent = random_tensors(SMALL)
    expanded = torch.ones((), dtype=torch.float64).expand_as(cotangent)
    expected = _reference(input, weight, torch.ones_like(cotangent), SMALL)
    for actual, exact in zip(
        output_and_gradients(input, weight, expanded, SMALL), expected, strict=True
    ):
        assert_close(actual, exact)


@pytest.mark.parametrize("shape", [(0, 4, 5, 5), (2, 0, 5, 5)])
def test_empty_tensors(backend: str, shape: tuple[int, ...]) -> None:
    input = torch.ones(shape, requires_grad=True)
    weight = torch.ones(shape[0], 2, 3, 3, 5, 5, requires_grad=True)
    output = involution2d(input, weight, padding=1)
    output.sum().backward()
    assert output.shape == shape
    assert input.grad.shape == shape
    assert (weight.grad == 0).all() and weight.grad.shape == weight.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_casts_both_tensors(backend: str, dtype: torch.dtype) -> None:
    if dtype == torch.float16 and not hasattr(torch, "get_autocast_dtype"):
        pytest.skip("before torch 2.4 the CPU has no autocast to float16")
    tensors = [tensor.float() for tensor in random_tensors(SMALL)]
    rounded = [tensor.to(dtype).double() for tensor in tensors]
    with torch.autocast("cpu", dtype=dtype):
        output = involution2d(tensors[0], tensors[1].to(dtype), *SMALL[1:])
        wide = involution2d(rounded[0], rounded[1], *SMALL[1:])
    assert output.dtype == dtype and wide.dtype == torch.float64
    assert_close(output, _reference(*rounded, SMALL)[0])


def test_autocast_gradients_come_back_in_the_arguments_dtype(backend: str) -> None:
    input, weight, cotangent = (tensor.float() for tensor in random_tensors(SMALL))
    input.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = involution2d(input, weight, *SMALL[1:])
    output.backward(cotangent.bfloat16())
    assert input.grad.dtype == torch.float32 and input.grad.any()


def test_the_operators_pass_pytorchs_own_checks() -> None:
    if not hasattr(torch.library, "opcheck"):
        pytest.skip("torch.library.opcheck came with torch 2.4")
    input, weight, cotangent = (tensor.requires_grad_() for tensor in random_tensors(SMALL))
    window = [list(numbers) for numbers in SMALL[1:]]
    size, groups = list(input.shape[2:]), weight.shape[1]
    kernel_size = list(SMALL.kernel_size)
    operators = torch.ops.rednet
    for operator, arguments in (
        (operators.involution2d, (input, weight)),
        (operators.involution2d_grad_input, (cotangent, weight, size)),
        (operators.involution2d_grad_weight, (cotangent, input, groups, kernel_size)),
    ):
        torch.library.opcheck(operator.default, (*arguments, *window))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_has_no_graph_break(dynamic: bool) -> None:
    def double_involution(input: Tensor, weight: Tensor) -> Tensor:
        return involution2d(2 * input, weight, *SMALL[1:])

    compiled = torch.compile(
        double_involution, fullgraph=True, backend="aot_eager", dynamic=dynamic
    )
    input, weight, cotangent = random_tensors(SMALL)
    input.requires_grad_(), weight.requires_grad_()
    expected = _reference(2 * input, weight, cotangent, SMALL)
    output = compiled(input, weight)
    assert_close(output, expected[0])
    grad_input, grad_weight = torch.autograd.grad(output, (input, weight), cotangent)
    assert_close(grad_input, 2 * expected[1])
    assert_close(grad_weight, expected[2])


def test_vmap_joins_the_batch() -> None:
    inputs, weights, _ = zip(*(random_tensors(SMALL) for _ in range(3)), strict=True)
    expected = torch.stack(
        [involution2d(i, w, *SMALL[1:]) for i, w in zip(inputs, weights, strict=True)]
    )
    assert expected.any()
    mapped = torch.func.vmap(lambda i, w: involution2d(i, w, *SMALL[1:]), in_dims=(1, 0))
    assert_close(mapped(torch.stack(inputs, dim=1), torch.stack(weights)), expected)
    one_input = torch.func.vmap(lambda w: involution2d(inputs[0], w, *SMALL[1:]))
    assert_close(one_input(torch.stack(weights))[0], expected[0])


def test_views_that_are_lazily_negated() -> None:
    input, weight, _ = random_tensors(SMALL)
    expected = involution2d(-input, weight, *SMALL[1:])
    assert_close(involution2d(torch._neg_view(input), weight, *SMALL[1:]), expected)
    assert_close(involution2d(input, torch._neg_view(weight), *SMALL[1:]), expected)


def test_meta_tensors_give_shapes_alone() -> None:
    input = torch.empty(2, 6, 9, 11, device="meta", requires_grad=True)
    weight = torch.empty(2, 2, 3, 3, 5, 6, device="meta", requires_grad=True)
    output = involution2d(input, weight, stride=2, padding=1)
    output.sum().backward()
    assert output.shape == (2, 6, 5, 6) and output.is_meta
    assert input.grad.shape == input.shape and weight.grad.shape == weight.shape


GOOD = {"input": torch.ones(2, 4, 5, 5), "weight": torch.ones(2, 2, 3, 3, 5, 5), "padding": 1}


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"input": [1.0]}, TypeError, "input must be a torch.Tensor, got list"),
        ({"weight": None}, TypeError, "weight must be a torch.Tensor, got NoneType"),
        ({"input": torch.ones(4, 5, 5)}, ValueError, r"input must have shape .*\(4, 5, 5\)"),
        ({"weight": torch.ones(2, 18, 5, 5)}, ValueError, r"weight must have shape .*18, 5, 5\)"),
        ({"input": torch.ones(3, 4, 5, 5)}, ValueError, "same batch size, got 3 and 2"),
        ({"input": torch.ones(2, 3, 5, 5)}, ValueError, "got 3 channels and 2 groups"),
        ({"weight": torch.ones(2, 0, 3, 3, 5, 5)}, ValueError, "got 4 channels and 0 groups"),
        ({"weight": torch.ones(2, 2, 0, 3, 5, 5)}, ValueError, "kernel of at least 1 x 1"),
        ({"padding": 0}, ValueError, "each of the 3 x 3 output pixels .*, got 5 x 5"),
        ({"stride": 2}, ValueError, "each of the 3 x 3 output pixels of .* 5 x 5, got 5 x 5"),
        ({"dilation": 9}, ValueError, "input of 5 x 5 is smaller than the window"),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"padding": (1, -1)}, ValueError, r"padding must be at least 0, got \(1, -1\)"),
        ({"dilation": "a"}, TypeError, "dilation must be an int or a pair of ints, got 'a'"),
        ({"input": torch.ones(2, 4, 5, 5).long()}, TypeError, "input must be one of .*int64"),
        (
            {"weight": torch.ones(2, 2, 3, 3, 5, 5).cfloat()},
            TypeError,
            "weight must be .*complex64",
        ),
        ({"input": torch.ones(2, 4, 5, 5).half()}, TypeError, "float16 and torch.float32"),
        ({"input": torch.ones(2, 4, 5, 5).to("meta")}, ValueError, "one device, got meta and cpu"),
    ],
)
def test_bad_arguments_are_named(changed: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        involution2d(**{**GOOD, **changed})
