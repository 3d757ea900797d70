"""The ImageNet configs of the convolution variants build, and count the published parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

pytest.importorskip("mmpretrain", reason="the classifiers are mmpretrain's")

FOLDER = Path(__file__).parents[2] / "configs" / "variants"
# In millions. SAConv's are what it adds to the 25.56 of ResNet-50.
PUBLISHED_PARAMETERS = {
    "resnet18_odconv1x_imagenet": 11.94,
    "resnet18_odconv4x_imagenet": 44.90,
    "resnet50_odconv1x_imagenet": 28.64,
    "resnet50_odconv4x_imagenet": 90.67,
    "resnet50_spconv2_imagenet": 18.34,
    "resnet50_spconv4_imagenet": 16.93,
    "resnet50_spconv8_imagenet": 16.22,
    "resnet18_acblock_imagenet": 19.028520,
    "resnet50_saconv_imagenet": 25.56 + 13.71,
    "resnet50_saconv-deform_imagenet": 25.56 + 14.87,
    "mobilenet-v2_condconv_imagenet": 22.88,
    "resnet18_dynamicconv_imagenet": 45.48,
    "resnet101_odconv1x_imagenet": 50.82,
    "resnet101_odconv2x_imagenet": 90.44,
    "mobilenet-v2_odconv1x_imagenet": 4.94,
    "mobilenet-v2_odconv4x_imagenet": 11.51,
    "mobilenet-v2-x0.75_odconv1x_imagenet": 3.51,
    "mobilenet-v2-x0.75_odconv4x_imagenet": 7.50,
    "mobilenet-v2-x0.5_odconv1x_imagenet": 2.43,
    "mobilenet-v2-x0.5_odconv4x_imagenet": 4.44,
    "efficientnet-b0_condconv_imagenet": 24.01,
    # No figure of these is published: the counts of this package.
    "resnet34_acblock_imagenet": 35.885352,
    "resnet50_acblock_imagenet": 33.116968,
    "vgg16_spconv2_imagenet": 128.99,
    "resnet50_dynamicconv_imagenet": 100.90,
    "mobilenet-v2_dynamicconv_imagenet": 12.42,
}
TEMPERED = ("odconv", "dynamicconv")


def _build(config: Config) -> nn.Module:
    import mmpretrain.models  # noqa: F401

    with DefaultScope.overwrite_default_scope("mmpretrain"):
        return MODELS.build(config.model)


def test_every_config_is_counted() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(PUBLISHED_PARAMETERS)


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_parameters_are_the_published_ones(name: str) -> None:
    if "deform" in name:
        pytest.importorskip("mmcv.ops", reason="deformable convolution needs mmcv's operators")
    model = _build(Config.fromfile(FOLDER / f"{name}.py"))
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    # Some of the published figures are cut off, not rounded.
    assert abs(millions - PUBLISHED_PARAMETERS[name]) < 0.01
    size = (224, 224) if "vgg" in name else (33, 47)  # VGG's linear layers fit one size
    assert model.eval().extract_feat(torch.rand(1, 3, *size))[0].ndim == 2


def test_acnet_has_the_published_parameters_exactly() -> None:
    """A block takes the norm's place: 16 norms fewer than with a block in each convolution's."""
    model = _build(Config.fromfile(FOLDER / "resnet18_acblock_imagenet.py"))
    assert sum(parameter.numel() for parameter in model.parameters()) == 19_028_520


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_layers_with_a_temperature_are_trained_with_its_schedule(name: str) -> None:
    config = Config.fromfile(FOLDER / f"{name}.py")
    hooks = [hook["type"] for hook in config.custom_hooks]
    assert ("TemperatureAnnealHook" in hooks) == any(each in name for each in TEMPERED)
