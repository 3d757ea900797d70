"""The operator in ONNX: ONNX Runtime computes the same at any size."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rednet import ops
from rednet.ops import involution2d
from rednet.ops.geometry import Geometry
from tests.ops.cases import GEOMETRIES, SIZE
from tests.tolerances import assert_close

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

HAS_CHOICE = "dynamo" in inspect.signature(torch.onnx.export).parameters
FREE = {
    "input": {0: "batch", 2: "height", 3: "width"},
    "weight": {0: "batch", 4: "rows", 5: "columns"},
    "output": {0: "batch", 2: "rows", 3: "columns"},
}
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


def _export(geometry: Geometry, path: Path, **arguments: Any) -> Any:
    torch.onnx.export(
        Operator(geometry),
        _random_tensors(geometry, 2, *SIZE),
        str(path),
        opset_version=17,
        input_names=["input", "weight"],
        output_names=["output"],
        **arguments,
    )
    return onnx.load(str(path))


def _check(path: Path, geometry: Geometry) -> None:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch, *size in OTHER_SIZES:
        input, weight = _random_tensors(geometry, batch, *size)
        (output,) = session.run(None, {"input": input.numpy(), "weight": weight.numpy()})
        with ops.backend("reference"):
            expected = involution2d(input.double(), weight.double(), *geometry[1:])
        assert_close(torch.from_numpy(output), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_by_the_torchscript_exporter(geometry: Geometry, tmp_path: Path) -> None:
    path = tmp_path / "operator.onnx"
    model = _export(geometry, path, dynamic_axes=FREE, **(dict(dynamo=False) if HAS_CHOICE else {}))
    assert {node.domain for node in model.graph.node} == {""}
    _check(path, geometry)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_by_the_dynamo_exporter(tmp_path: Path) -> None:
    if not (HAS_CHOICE and hasattr(torch.compiler, "is_exporting")):
        pytest.skip("torch.export tells that it exports since torch 2.7")
    pytest.importorskip("onnxscript")
    path, geometry = tmp_path / "operator.onnx", GEOMETRIES["rectangular, nothing square"]
    free = ((0, 2, 3), (0, 4, 5))
    free = tuple({at: torch.export.Dim.DYNAMIC for at in axes} for axes in free)
    model = _export(geometry, path, dynamic_shapes=free, dynamo=True, external_data=False)
    assert {node.domain for node in model.graph.node} == {""}
    _check(path, geometry)
