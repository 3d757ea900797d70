"""Where PyTorch's own operators compute involution: in ONNX, in torch.func, in forward mode."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from rednet import ops
from rednet.ops import involution2d
from rednet.ops.geometry import Geometry
from tests.ops.cases import GEOMETRIES, SIZE
from tests.tolerances import assert_close

HAS_CHOICE = "dynamo" in inspect.signature(torch.onnx.export).parameters
FREE = {
    "input": {0: "batch", 2: "height", 3: "width"},
    "weight": {0: "batch", 4: "rows", 5: "columns"},
    "output": {0: "batch", 2: "rows", 3: "columns"},
}
SMALL = GEOMETRIES["rectangular, nothing square"]
OTHER_SIZES = ((1, *SIZE), (3, 12, 10), (2, 15, 16))


class Operator(nn.Module):
    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry

    def forward(self, input: Tensor, weight: Tensor) -> Tensor:
        return involution2d(input, weight, *self.geometry[1:])


def _random_tensors(geometry: Geometry, batch: int, *size: int) -> tuple[Tensor, Tensor]:
    kernels = (*geometry.kernel_size, *geometry.output_size(*size))
    return torch.randn(batch, 6, *size), torch.randn(batch, 2, *kernels)


def _export(geometry: Geometry, path: Path, **arguments: Any) -> None:
    pytest.importorskip("onnx")
    torch.onnx.export(
        Operator(geometry),
        _random_tensors(geometry, 2, *SIZE),
        str(path),
        opset_version=17,
        input_names=["input", "weight"],
        output_names=["output"],
        **arguments,
    )


def _check(path: Path, geometry: Geometry) -> None:
    """ONNX Runtime computes the same at any size, and without operators outside of the standard."""
    graph = pytest.importorskip("onnx").load(str(path)).graph
    assert {node.domain for node in graph.node} == {""}
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch, *size in OTHER_SIZES:
        input, weight = _random_tensors(geometry, batch, *size)
        (output,) = session.run(None, {"input": input.numpy(), "weight": weight.numpy()})
        with ops.backend("reference"):
            expected = involution2d(input.double(), weight.double(), *geometry[1:])
        assert_close(torch.from_numpy(output), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_the_torchscript_exporter(geometry: Geometry, tmp_path: Path) -> None:
    path = tmp_path / "operator.onnx"
    _export(geometry, path, dynamic_axes=FREE, **(dict(dynamo=False) if HAS_CHOICE else {}))
    _check(path, geometry)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_dynamo_exporter(tmp_path: Path) -> None:
    if not (HAS_CHOICE and hasattr(torch.compiler, "is_exporting")):
        pytest.skip("torch.export tells that it exports since torch 2.7")
    pytest.importorskip("onnxscript")
    path = tmp_path / "operator.onnx"
    _export(SMALL, path, dynamic_shapes=(FREE["input"], FREE["weight"]), dynamo=True)
    _check(path, SMALL)


@pytest.fixture
def tensors() -> list[Tensor]:
    """Input, weight, and a tangent of each, in float64."""
    return [each.double() for _ in range(2) for each in _random_tensors(SMALL, 2, *SIZE)]


def _involution(input: Tensor, weight: Tensor) -> Tensor:
    return involution2d(input, weight, *SMALL[1:])


def _product_rule(tensors: list[Tensor]) -> Tensor:
    input, weight, input_tangent, weight_tangent = tensors
    return _involution(input_tangent, weight) + _involution(input, weight_tangent)


def test_jvp_follows_the_product_rule(tensors: list[Tensor]) -> None:
    output, tangent = torch.func.jvp(_involution, tuple(tensors[:2]), tuple(tensors[2:]))
    assert_close(output, _involution(*tensors[:2]))
    assert_close(tangent, _product_rule(tensors))


def test_forward_mode_follows_the_product_rule(tensors: list[Tensor]) -> None:
    with forward_ad.dual_level():
        duals = map(forward_ad.make_dual, tensors[:2], tensors[2:])
        tangent = forward_ad.unpack_dual(_involution(*duals)).tangent
        assert tangent is not None
    assert_close(tangent, _product_rule(tensors))


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        # PyTorch's operators would repeat the one kernel, or convert the numbers.
        (torch.ones(2, 2, 3, 3, 1, 1), ValueError, "each of the 5 x 5 output pixels .*, got 1 x 1"),
        (torch.ones(2, 2, 3, 3, 5, 5).double(), TypeError, "float32 and torch.float64"),
    ],
    ids=["size", "dtype"],
)
def test_bad_arguments_are_named_here_too(
    weight: Tensor, error: type[Exception], message: str
) -> None:
    input = torch.ones(2, 4, 5, 5)
    with pytest.raises(error, match=message):
        torch.func.jvp(lambda image: involution2d(image, weight, padding=1), (input,), (input,))


def _loss(input: Tensor, weight: Tensor) -> Tensor:
    return _involution(input, weight).square().sum()


def _gradients(input: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    leaves = [each.clone().requires_grad_() for each in (input, weight)]
    return torch.autograd.grad(_loss(*leaves), leaves)


def test_functional_gradients_are_autograds(tensors: list[Tensor]) -> None:
    actual = torch.func.grad(_loss, argnums=(0, 1))(*tensors[:2])
    for gradient, expected in zip(actual, _gradients(*tensors[:2]), strict=True):
        assert_close(gradient, expected)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_gradients_of_each_sample(tensors: list[Tensor]) -> None:
    samples = [each.unsqueeze(1) for each in tensors[:2]]
    actual = torch.func.vmap(torch.func.grad(_loss, argnums=(0, 1)))(*samples)
    for gradient, expected in zip(actual, _gradients(*tensors[:2]), strict=True):
        assert_close(gradient.squeeze(1), expected)


def test_gradients_through_a_mapped_operator(tensors: list[Tensor]) -> None:
    def loss(input: Tensor, weight: Tensor) -> Tensor:
        samples = [each.unsqueeze(1) for each in (input, weight)]
        return torch.func.vmap(_involution)(*samples).square().sum()

    actual = torch.func.grad(loss, argnums=(0, 1))(*tensors[:2])
    for gradient, expected in zip(actual, _gradients(*tensors[:2]), strict=True):
        assert_close(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sixteen_bits_accumulate_in_float32(dtype: torch.dtype) -> None:
    # 1024 + 48 halves: a 16-bit sum would stop growing at the first half.
    input = torch.full((1, 1, 7, 7), 0.5, dtype=dtype)
    input[..., 0, 0] = 1024
    weight = torch.ones(1, 1, 7, 7, 1, 1, dtype=dtype)
    output, _ = torch.func.jvp(involution2d, (input, weight), (input, weight))
    assert output.dtype == dtype
    assert output.item() == torch.tensor(1048.0).to(dtype).item()
