"""The operators in PyTorch's tracers and modes; tests/ops/test_involution.py has their results."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from rednet.ops import involution2d
from tests.ops.cases import GEOMETRIES, random_tensors

# Before torch 2.2 a trace's error does not say what the operator said.
TRACES_TELL = torch.__version__ >= (2, 2)

SMALL = GEOMETRIES["rectangular, nothing square"]


class Operator(nn.Module):
    def forward(self, input: Tensor, weight: Tensor) -> Tensor:
        return involution2d(input, weight, *SMALL[1:])


def _in_eager(input: Tensor, weight: Tensor) -> Tensor:
    """What another mode has to equal, which would say nothing of zeros."""
    output = Operator()(input, weight)
    assert output.any()
    return output


def _random_float32(batch: int, *size: int) -> tuple[Tensor, Tensor]:
    kernels = (*SMALL.kernel_size, *SMALL.output_size(*size))
    return torch.randn(batch, 6, *size), torch.randn(batch, 2, *kernels)


def test_export_keeps_one_operator_for_any_batch() -> None:
    if not hasattr(torch.export, "Dim"):
        pytest.skip("torch.export.Dim came with torch 2.2")
    free = {0: torch.export.Dim("batch", min=1)}
    program = torch.export.export(
        Operator(), _random_float32(2, 9, 11), dynamic_shapes=(free, free)
    )
    called = [node.target for node in program.graph.nodes if "rednet" in str(node.target)]
    assert called == [torch.ops.rednet.involution2d.default]
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    more = _random_float32(5, 9, 11)
    assert torch.equal(torch.export.load(file).module()(*more), _in_eager(*more))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_trace_serves_any_batch_and_size() -> None:
    traced = torch.jit.trace(Operator(), _random_float32(2, 9, 11))
    assert "rednet::involution2d" in str(traced.graph)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    larger = _random_float32(3, 14, 17)
    assert torch.equal(torch.jit.load(file)(*larger), _in_eager(*larger))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_trace_refuses_what_the_operator_refuses() -> None:
    input, weight = _random_float32(2, 9, 11)
    traced = torch.jit.trace(Operator(), (input, weight))
    for changed, message in {
        (input.repeat(9, 1, 1, 1), weight): "same batch size, got 18 and 2",
        (input[:, 1:], weight): "got 5 channels and 2 groups",
        (input[0], weight): "input must have shape",
        (input[..., 1:, 1:], weight): "each of the 3 x 3 output pixels .* got 4 x 4",
        (input, weight.half()): "got torch.float32 and torch.float16",
    }.items():
        with pytest.raises(RuntimeError, match=message if TRACES_TELL else None):
            traced(*changed)


@pytest.mark.parametrize(
    "changed", [{"stride": (-1, 1)}, {"padding": (1, -1)}, {"dilation": (1, 0)}]
)
def test_the_operators_refuse_windows_that_are_none(changed: dict[str, tuple[int, int]]) -> None:
    input, weight = torch.ones(2, 4, 5, 5), torch.ones(2, 2, 3, 3, 5, 5)
    window = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), **changed}
    with pytest.raises(ValueError, match="must be at least 1 and padding at least 0"):
        torch.ops.rednet.involution2d(input, weight, **window)


@pytest.mark.parametrize(
    "shape", [(2, 4, 9, 9), (3, 4, 5, 5), (2, 6, 5, 5)], ids=["size", "batch", "channels"]
)
def test_gradients_refuse_another_outputs_gradient(shape: tuple[int, ...]) -> None:
    grad, input, weight = torch.ones(shape), torch.ones(2, 4, 5, 5), torch.ones(2, 2, 3, 3, 5, 5)
    window = ((1, 1), (1, 1), (1, 1))
    with pytest.raises(ValueError, match="must"):
        torch.ops.rednet.involution2d_grad_weight(grad, input, 2, (3, 3), *window)
    if shape[1] == 4:  # as many channels as there are: the image that is made has them too
        with pytest.raises(ValueError, match="must"):
            torch.ops.rednet.involution2d_grad_input(grad, weight, (5, 5), *window)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_graphs_refuse_forward_mode_derivatives(device: str) -> None:
    input, weight = (tensor.to(device) for tensor in _random_float32(2, 9, 11))
    recorded = torch.compile(Operator(), backend="aot_eager")
    recorded(input, weight)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        recorded(forward_ad.make_dual(input, torch.ones_like(input)), weight)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compile_leaves_the_kernels_alone_after_an_error() -> None:
    def involve(input: Tensor, weight: Tensor) -> Tensor:
        return involution2d(input, weight, *SMALL[1:])

    input, weight = _random_float32(2, 9, 11)
    with pytest.raises(ValueError, match="got 4 x 2"):
        torch.compile(involve, backend="eager")(input, weight[..., :2])
    compiled = torch.compile(involve, backend="eager", fullgraph=True)
    assert torch.equal(compiled(input, weight), _in_eager(input, weight))


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_deterministic_mode_repeats_every_bit(deterministic: None) -> None:
    input, weight, cotangent = (tensor.float() for tensor in random_tensors(GEOMETRIES["RedNet"]))
    input.requires_grad_(), weight.requires_grad_()

    def run() -> list[Tensor]:
        output = involution2d(input, weight, *GEOMETRIES["RedNet"][1:])
        return [output, *torch.autograd.grad(output, (input, weight), cotangent)]

    first = run()
    assert all(result.any() for result in first)
    for _ in range(3):
        assert all(map(torch.equal, run(), first))


def test_inference_mode() -> None:
    input, weight, _ = random_tensors(SMALL)
    expected = _in_eager(input, weight)
    with torch.inference_mode():
        assert torch.equal(Operator()(input, weight), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_compiled_autocast_casts_as_eager_does(dtype: torch.dtype) -> None:
    if not hasattr(torch, "get_autocast_dtype"):
        pytest.skip("before torch 2.4 a compiled graph cannot ask for autocast's dtype")
    input, weight, _ = (tensor.float() for tensor in random_tensors(SMALL))
    compiled = torch.compile(Operator(), fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=dtype):
        output = compiled(input, weight)
        expected = _in_eager(input, weight)
    assert output.dtype == dtype
    assert torch.equal(output, expected)
