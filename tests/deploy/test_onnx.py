from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rednet.deploy.onnx import _HAS_DYNAMO, compare_onnx, export_onnx, outputs_of, random_images
from rednet.errors import UserError
from rednet.layers import Involution2d
from tests.layers.cases import build

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


IMAGES = random_images((2, 3, 4, 4))


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
    graph = export_onnx(
        Involution2d(16, 16, 3, padding=1), tmp_path / "m.onnx", random_images((2, 16, 8, 8))
    )
    assert graph.opset == 17
    assert graph.inputs == {"image": ("batch", 16, "height", "width")}
    assert graph.outputs == {"output": ("batch", 16, "output_height", "output_width")}


@pytest.mark.parametrize("name", ["CondConv2d", "DynamicConv2d", "ODConv2d"])
@pytest.mark.parametrize(("exporter", "opset"), [("torchscript", 11), ("dynamo", 20)])
def test_the_opset_can_be_chosen(name: str, exporter: str, opset: int, tmp_path: Path) -> None:
    if exporter == "dynamo" and not _HAS_DYNAMO:
        pytest.skip("no such exporter")
    layer, images = build(name).eval(), random_images((2, 16, 8, 8))
    path = tmp_path / "m.onnx"
    assert export_onnx(layer, path, images, exporter=exporter, opset=opset).opset == opset
    assert compare_onnx(layer, path, random_images((3, 16, 9, 7))).agrees


@pytest.mark.skipif(not _HAS_DYNAMO, reason="no such exporter")
def test_an_opset_that_the_exporter_cannot_write_is_an_error(tmp_path: Path) -> None:
    arguments = (build("CondConv2d"), tmp_path / "m.onnx", random_images((2, 16, 8, 8)))
    with pytest.raises(UserError, match="dynamo exporter writes opset 18 and newer, and opset 11"):
        export_onnx(*arguments, exporter="dynamo", opset=11)
    with pytest.raises(UserError, match="torchscript exporter cannot export .*opset_version: 99"):
        export_onnx(*arguments, opset=99)


def test_a_model_that_computes_something_else_shows(tmp_path: Path) -> None:
    export_onnx(OnBatches(), tmp_path / "m.onnx", IMAGES)
    same = compare_onnx(OnBatches(), tmp_path / "m.onnx", IMAGES)
    assert same.agrees
    assert same.exported == same.original
    other = compare_onnx(OnBatches(), tmp_path / "m.onnx", random_images((4, 3, 4, 4)))
    assert not other.agrees
    assert other.exported == pytest.approx(0.5)


class Cancels(nn.Module):
    """Rounds to float32's limits, as a trained network does on an image it was not made for."""

    def forward(self, images: Tensor) -> Tensor:
        return (images + 2**16) - images.mean() - 2**16


def test_what_rounding_explains_is_allowed(tmp_path: Path) -> None:
    export_onnx(Cancels(), tmp_path / "m.onnx", IMAGES)
    found = compare_onnx(Cancels(), tmp_path / "m.onnx", IMAGES)
    assert found.original > 1e-4
    assert found.agrees


class Overflows(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images * 1e30 * 1e30


def test_a_model_whose_outputs_are_not_finite_is_refused(tmp_path: Path) -> None:
    export_onnx(Overflows(), tmp_path / "m.onnx", IMAGES)
    with pytest.raises(UserError, match="Overflows on images of 2 x 3 x 4 x 4 are not finite"):
        compare_onnx(Overflows(), tmp_path / "m.onnx", IMAGES)


def test_random_images_are_smooth_and_normalized() -> None:
    mean, std = torch.tensor([10.0, 120.0]).view(-1, 1, 1), torch.tensor([2.0, 60.0]).view(-1, 1, 1)
    images = random_images((2, 2, 33, 40), mean, std)
    pixels = images * std + mean
    torch.testing.assert_close(pixels, pixels.round())
    assert 0 <= pixels.min() < 64 < 192 < pixels.max() <= 255
    assert (pixels[..., 1:] - pixels[..., :-1]).abs().max() <= 64
    assert torch.equal(images, random_images((2, 2, 33, 40), mean, std))


def test_an_image_that_the_graph_does_not_take_is_said(tmp_path: Path) -> None:
    export_onnx(OnBatches(), tmp_path / "m.onnx", IMAGES, dynamic_size=False)
    with pytest.raises(UserError, match="ONNX Runtime fails on images of 1 x 3 x 5 x 4: "):
        compare_onnx(OnBatches(), tmp_path / "m.onnx", random_images((1, 3, 5, 4)))


def test_an_operator_without_a_translation_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot export this Unexportable: .*linalg_svdvals"):
        export_onnx(Unexportable(), tmp_path / "m.onnx", IMAGES)


def test_a_model_without_tensors_is_refused() -> None:
    with pytest.raises(UserError, match="ToText does not map images to tensors but to list"):
        outputs_of(ToText(), torch.ones(1, 3, 4, 4))
