"""Detectors of RedNet on images of odd shapes; the demos' models, with involutions everywhere."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from torch import nn

from rednet.cli.random_batch import random_batch

pytest.importorskip("mmdet", reason="detectors need mmdet")

ROOT = Path(__file__).resolve().parents[2]
INVOLUTION = dict(type="Involution2d", kernel_size=7, bias=False)
NAMES = ("retinanet", "faster-rcnn", "mask-rcnn")
# Height and width of the images of a batch.
SHAPES = {
    "one image": [(64, 64)],
    "odd sides": [(65, 97)],
    "one pixel high": [(1, 80)],
    "one pixel": [(1, 1)],
    "padded to the largest": [(33, 90), (90, 33), (57, 57)],
}


@pytest.fixture(autouse=True)
def _mmdet_scope() -> None:
    DefaultScope.get_instance("test_detectors", scope_name="mmdet")


@functools.cache  # mmengine reads mmdet's whole model index for each config that it inherits
def demo_config(name: str) -> Config:
    return Config.fromfile(ROOT / f"configs/demo/{name}_rednet26_digits.py").model


def model_config(name: str, divisor: int) -> Config:
    model = copy.deepcopy(demo_config(name))
    model.data_preprocessor.pad_size_divisor = divisor
    model.neck = swapped(model.neck, r"^fpn_convs\.\d+\.conv$")
    if "rpn_head" in model:
        model.rpn_head = swapped(model.rpn_head, "^rpn_conv$")
    if "mask_head" in model.get("roi_head", {}):
        model.roi_head.mask_head = swapped(model.roi_head.mask_head, r"^convs\.\d+\.conv$")
    (model.test_cfg.rcnn if "rcnn" in model.test_cfg else model.test_cfg).score_thr = 0.0
    return model


def swapped(module: dict, include: str) -> dict:
    return dict(type="SwapConv", module=module, conv_cfg=INVOLUTION, include=include)


def build(name: str, divisor: int) -> nn.Module:
    model = MODELS.build(model_config(name, divisor))
    model.init_weights()
    return model


def losses(model: nn.Module, data: dict) -> torch.Tensor:
    model.train()
    prepared = model.data_preprocessor(data, training=True)
    total, _ = model.parse_losses(model(**prepared, mode="loss"))
    return total


@pytest.mark.parametrize("name", NAMES)
def test_training_and_prediction_on_every_shape(name: str) -> None:
    # Without a divisor the maps' sizes stay odd all the way through backbone and neck.
    for divisor in (1, 32):
        model = build(name, divisor)
        for what, shapes in SHAPES.items():
            for objects in (3, 0):
                data = random_batch("mmdet", shapes, objects)
                if len(shapes) == 1:  # batch norm needs more than one value
                    data = dict(inputs=data["inputs"] * 2, data_samples=data["data_samples"] * 2)
                total = losses(model, data)
                total.backward()
                assert total.isfinite(), f"{what}, divisor {divisor}, {objects} objects"
            data = model.data_preprocessor(random_batch("mmdet", shapes, 1))
            model.eval()
            with torch.no_grad():
                results = model(**data, mode="predict")
            assert what != "one image" or len(results[0].pred_instances)
            for (height, width), result in zip(shapes, results, strict=True):
                boxes = result.pred_instances.bboxes
                inside = boxes.clamp(
                    min=boxes.new_zeros(4), max=boxes.new_tensor([width, height] * 2)
                )
                assert torch.equal(boxes, inside), f"{what}, divisor {divisor}"


@pytest.mark.parametrize("name", NAMES)
def test_every_trainable_parameter_gets_a_gradient(name: str) -> None:
    model = build(name, divisor=32)
    losses(model, random_batch("mmdet", [(64, 64), (48, 96)], objects=3)).backward()
    without = [name for name, each in model.named_parameters() if each.grad is None]
    assert without == []


@pytest.mark.parametrize("name", NAMES)
def test_predictions_do_not_depend_on_the_batch(name: str) -> None:
    model = build(name, divisor=32).eval()
    data = random_batch("mmdet", [(64, 64), (64, 64)], objects=1)
    together = predict(model, data)
    alone = predict(model, dict(inputs=data["inputs"][:1], data_samples=data["data_samples"][:1]))
    # PyTorch convolves one image and two by different algorithms; some hundred layers add that up.
    torch.testing.assert_close(together[0].scores, alone[0].scores, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(together[0].bboxes, alone[0].bboxes, atol=1e-3, rtol=1e-4)


def predict(model: nn.Module, data: dict) -> list[InstanceData]:
    with torch.no_grad():
        results = model(**model.data_preprocessor(data), mode="predict")
    return [result.pred_instances for result in results]
