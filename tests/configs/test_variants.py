"""The configs of the convolution variants build, and count the published parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from rednet.layers import ACBlock

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
    # SPConv's table has 5.6 for the first, 0.10 and 0.071 for the last two.
    "vgg16_spconv2_cifar10": 5.61,
    "vgg16_spconv4_cifar10": 3.77,
    "vgg16_spconv8_cifar10": 2.85,
    "vgg16_spconv16_cifar10": 2.39,
    "resnet20_spconv2_cifar10": 0.105082,
    "resnet20_spconv4_cifar10": 0.071674,
    # No figure of these is published: the counts of this package.
    "resnet34_acblock_imagenet": 35.885352,
    "resnet50_acblock_imagenet": 33.116968,
    "vgg16_spconv2_imagenet": 128.99,
    "resnet50_dynamicconv_imagenet": 100.90,
    "mobilenet-v2_dynamicconv_imagenet": 12.42,
    "cifar-quick_acblock_cifar10": 0.149226,
    "vgg16_acblock_cifar10": 24.810570,
    "resnet56_acblock_cifar10": 1.429434,
    "wrn-16-8_acblock_cifar10": 18.172538,
}
CIFAR = tuple(name for name in PUBLISHED_PARAMETERS if name.endswith("acblock_cifar10"))
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
    size = (32, 32) if "cifar10" in name else size
    assert model.eval().extract_feat(torch.rand(1, 3, *size))[0].ndim == 2


def test_acnet_has_the_published_parameters_exactly() -> None:
    """A block takes the norm's place: 16 norms fewer than with a block in each convolution's."""
    model = _build(Config.fromfile(FOLDER / "resnet18_acblock_imagenet.py"))
    assert sum(parameter.numel() for parameter in model.parameters()) == 19_028_520


def _acblock(kernel_size: int, inputs: int, outputs: int) -> int:
    """Parameters of a block: three kernels and three norms."""
    return (kernel_size**2 + 2 * kernel_size) * inputs * outputs + 6 * outputs


def test_the_networks_for_cifar_have_the_parameters_of_their_layers() -> None:
    quick = _acblock(5, 3, 32) + _acblock(5, 32, 32) + _acblock(5, 32, 64)
    quick += (576 + 1) * 64 + (64 + 1) * 10
    vgg, inputs = (512 + 1) * 512 + (512 + 1) * 10, 3
    for outputs in (64, 64, 128, 128, 256, 256, 256, *(6 * [512])):
        vgg, inputs = vgg + _acblock(3, inputs, outputs), outputs
    resnet = _acblock(3, 3, 16) + 18 * _acblock(3, 16, 16) + (64 + 1) * 10
    for inputs in (16, 32):
        resnet += _acblock(3, inputs, 2 * inputs) + 17 * _acblock(3, 2 * inputs, 2 * inputs)
        resnet += inputs * 2 * inputs + 2 * 2 * inputs
    wide, inputs = _acblock(3, 3, 16) + 2 * 512 + (512 + 1) * 10, 16
    for outputs in (128, 256, 512):
        wide += 2 * 2 * inputs + inputs * outputs + _acblock(3, inputs, outputs)
        wide, inputs = wide + 3 * (2 * outputs + _acblock(3, outputs, outputs)), outputs
    counts = dict(zip(CIFAR, (quick, vgg, resnet, wide), strict=True))
    for name, count in counts.items():
        assert PUBLISHED_PARAMETERS[name] == count / 1e6
        model = _build(Config.fromfile(FOLDER / f"{name}.py"))
        assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("name", CIFAR)
def test_the_blocks_of_a_network_for_cifar_start_at_a_third(name: str) -> None:
    model = _build(Config.fromfile(FOLDER / f"{name}.py"))
    model.init_weights()
    blocks = [each for each in model.modules() if isinstance(each, ACBlock)]
    assert (
        len(blocks)
        == {"cifar-quick": 3, "vgg16": 13, "resnet56": 55, "wrn-16-8": 13}[name.partition("_")[0]]
    )
    for block in blocks:
        for norm in (block.square_bn, block.ver_bn, block.hor_bn):
            assert (norm.weight == 1 / 3).all()
    assert model.eval()(torch.randn(1, 3, 32, 32), mode="tensor").shape == (1, 10)


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_layers_with_a_temperature_are_trained_with_its_schedule(name: str) -> None:
    config = Config.fromfile(FOLDER / f"{name}.py")
    hooks = [hook["type"] for hook in config.custom_hooks]
    assert ("TemperatureAnnealHook" in hooks) == any(each in name for each in TEMPERED)
