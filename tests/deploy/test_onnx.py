from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rednet.deploy.onnx import export_onnx, outputs_of, relative_errors
from rednet.errors import UserError
from rednet.layers import Involution2d

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


class Unexportable(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.linalg.svdvals(images)


class OnBatches(nn.Module):
    """What is recorded holds for batches of one size."""

    def forward(self, images: Tensor) -> Tensor:
        return images * float(len(images))


class ToText(nn.Module):
    def forward(self, images: Tensor) -> list[str]:
        return ["cat"]


def test_the_graph_is_described(tmp_path: Path) -> None:
    graph = export_onnx(Involution2d(16, 16, 3, padding=1), tmp_path / "m.onnx", (16, 8, 8))
    assert graph.opset == 17
    assert graph.inputs == {"image": ("batch", 16, "height", "width")}
    assert graph.outputs == {"output": ("batch", 16, "output_height", "output_width")}


def test_a_model_that_computes_something_else_shows(tmp_path: Path) -> None:
    export_onnx(OnBatches(), tmp_path / "m.onnx", (3, 4, 4))
    assert relative_errors(OnBatches(), tmp_path / "m.onnx", (2, 3, 4, 4)) == [0.0]
    assert relative_errors(OnBatches(), tmp_path / "m.onnx", (4, 3, 4, 4)) == [0.5]


def test_an_image_that_the_graph_does_not_take_is_said(tmp_path: Path) -> None:
    export_onnx(OnBatches(), tmp_path / "m.onnx", (3, 4, 4), dynamic_size=False)
    with pytest.raises(UserError, match="ONNX Runtime fails on images of 1 x 3 x 5 x 4: "):
        relative_errors(OnBatches(), tmp_path / "m.onnx", (1, 3, 5, 4))


def test_an_operator_without_a_translation_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot export this Unexportable: .*linalg_svdvals"):
        export_onnx(Unexportable(), tmp_path / "m.onnx", (3, 4, 4))


def test_a_model_without_tensors_is_refused() -> None:
    with pytest.raises(UserError, match="ToText does not map images to tensors but to list"):
        outputs_of(ToText(), torch.ones(1, 3, 4, 4))
