"""The backbones for images of 32 x 32 pixels, plain and with ACBlocks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rednet import switch_to_deploy
from rednet.errors import ArgumentError
from rednet.layers import ConvAWS2d
from rednet.models import CifarQuick, CifarResNet, WideResNet, swap_conv
from tests.layers.cases import randomized

CONVOLUTIONS = r"(^|\.)conv\d\.conv$"
Build = Callable[[], nn.Module]


def wide() -> nn.Module:
    return WideResNet(16, widen_factor=2)


NETWORKS: list[tuple[Build, int]] = [(CifarQuick, 64), (lambda: CifarResNet(14), 64), (wide, 128)]


def conv(kernel_size: int, inputs: int, outputs: int) -> int:
    """Parameters of a convolution without bias and of a norm of its outputs."""
    return kernel_size**2 * inputs * outputs + 2 * outputs


def parameters(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


def test_cifar_quick_has_the_parameters_of_its_convolutions() -> None:
    assert parameters(CifarQuick()) == conv(5, 3, 32) + conv(5, 32, 32) + conv(5, 32, 64)


@pytest.mark.parametrize(("depth", "blocks"), [(20, 3), (56, 9)])
def test_a_resnet_has_the_parameters_of_its_blocks(depth: int, blocks: int) -> None:
    expected = conv(3, 3, 16) + 2 * blocks * conv(3, 16, 16)
    for channels in (32, 64):
        first = conv(3, channels // 2, channels) + conv(1, channels // 2, channels)
        expected += first + (2 * blocks - 1) * conv(3, channels, channels)
    assert parameters(CifarResNet(depth)) == expected


def test_a_wide_resnet_has_the_parameters_of_its_blocks() -> None:
    expected, inputs = 9 * 3 * 16, 16
    for channels in (32, 64, 128):
        # A norm before each convolution: of the inputs twice, and of the outputs.
        expected += 2 * (2 * inputs) + (9 + 1) * inputs * channels
        expected += 3 * (2 * channels + 9 * channels * channels)
        inputs = channels
    assert parameters(wide()) == expected + 2 * 128


def test_cifar_quick_pools_as_published() -> None:
    model = randomized(CifarQuick()).eval()
    image = torch.randn(2, 3, 32, 32)
    expected = F.max_pool2d(model.conv1(image), 3, 2)
    expected = F.avg_pool2d(model.conv2(expected), 3, 2)
    expected = F.avg_pool2d(model.conv3(expected), 3, 2)
    assert expected.shape == (2, 64, 3, 3)
    torch.testing.assert_close(model(image), (expected,))
    normed = model.conv1.bn(F.conv2d(image, model.conv1.conv.weight, padding=2))
    torch.testing.assert_close(model.conv1(image), normed.relu())


def test_a_block_norms_and_adds_before_its_last_relu() -> None:
    block = randomized(CifarResNet(14)).eval().layer2[0]
    image = torch.randn(2, 16, 9, 9)
    inner = block.conv1.bn(F.conv2d(image, block.conv1.conv.weight, stride=2, padding=1)).relu()
    inner = block.conv2.bn(F.conv2d(inner, block.conv2.conv.weight, padding=1))
    shortcut = block.downsample.bn(F.conv2d(image, block.downsample.conv.weight, stride=2))
    torch.testing.assert_close(block(image), (inner + shortcut).relu())


def test_a_preactivated_block_norms_before_it_convolves() -> None:
    model = randomized(wide()).eval()
    first, second = model.layer2
    image = torch.randn(2, 32, 9, 9)

    def step(part: Any, image: torch.Tensor, stride: int) -> torch.Tensor:
        weight = part.conv.weight
        padding = weight.shape[-1] // 2
        return F.conv2d(part.bn(image).relu(), weight, stride=stride, padding=padding)

    inner = step(first.conv2, step(first.conv1, image, 2), 1) + step(first.shortcut, image, 2)
    torch.testing.assert_close(first(image), inner)
    expected = step(second.conv2, step(second.conv1, inner, 1), 1) + inner
    torch.testing.assert_close(second(inner), expected)
    assert model(torch.randn(2, 3, 32, 32))[0].min() < 0, "no ReLU follows the last norm"


@pytest.mark.parametrize(("build", "channels"), NETWORKS)
def test_every_parameter_learns_also_from_odd_sizes(build: Build, channels: int) -> None:
    model = build()
    [output] = model(torch.randn(2, 3, 33, 29))
    assert output.shape[:2] == (2, channels)
    if not isinstance(model, CifarQuick):
        assert output.shape[2:] == (9, 8)
    output.square().sum().backward()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in model.parameters())


@pytest.mark.parametrize(("build", "channels"), NETWORKS)
def test_blocks_fuse_into_the_plain_network(build: Build, channels: int) -> None:
    """Its keys too: a plain network that is fused loads the fused ACBlocks."""
    model = build()
    take_norm = not isinstance(model, WideResNet)
    acnet = swap_conv(model, dict(type="ACBlock"), CONVOLUTIONS, take_norm=take_norm)
    acnet = randomized(acnet).eval()
    image = torch.randn(2, 3, 32, 32)
    expected = acnet(image)
    fused = switch_to_deploy(copy.deepcopy(acnet))
    if take_norm:
        plain = switch_to_deploy(build())
    else:
        # Its convolutions have no norm behind them that would leave a bias.
        plain = build()
        for each in plain.modules():
            if isinstance(each, nn.Conv2d) and each.kernel_size == (3, 3):
                each.bias = nn.Parameter(torch.zeros(each.out_channels))
        plain.eval()
    assert fused.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(fused.state_dict())
    torch.testing.assert_close(plain(image), expected, rtol=1e-3, atol=1e-3)


def test_plain_weights_load_into_blocks() -> None:
    for build, _ in NETWORKS:
        plain = randomized(build()).eval()
        take_norm = not isinstance(plain, WideResNet)
        acnet = swap_conv(build(), dict(type="ACBlock"), CONVOLUTIONS, take_norm=take_norm).eval()
        acnet.load_state_dict(plain.state_dict())
        image = torch.randn(1, 3, 32, 32)
        torch.testing.assert_close(acnet(image), plain(image), rtol=1e-3, atol=1e-3)


def test_norms_and_convolutions_of_other_types() -> None:
    norm_cfg = dict(type="GN", num_groups=4)
    for kind, size in (
        (CifarQuick, {}),
        (CifarResNet, dict(depth=8)),
        (WideResNet, dict(depth=10)),
    ):
        model = kind(**size, norm_cfg=norm_cfg, conv_cfg=dict(type="ConvAWS2d"))
        kinds = {type(each) for each in model.modules()}
        assert {nn.GroupNorm, ConvAWS2d} <= kinds and not {nn.BatchNorm2d, nn.Conv2d} & kinds
        assert model(torch.randn(1, 3, 32, 32))[0].isfinite().all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CifarResNet(51), r"depth must be 6 n \+ 2 for a positive int n, got 51"),
        (lambda: CifarResNet(2), r"depth must be 6 n \+ 2 for a positive int n, got 2"),
        (lambda: WideResNet("16"), r"depth must be 6 n \+ 4 for a positive int n, got '16'"),
        (lambda: WideResNet(16, widen_factor=0), "widen_factor must be a positive int, got 0"),
        (lambda: CifarResNet(20, base_channels=1.5), "base_channels must be a positive int"),
        (lambda: CifarQuick(in_channels=-1), "in_channels must be a positive int, got -1"),
        (lambda: CifarQuick(conv_cfg=dict(type="None")), "conv_cfg: no layer is registered"),
        (lambda: CifarResNet(20, norm_cfg="BN"), "norm_cfg must be None or a dict"),
        (lambda: WideResNet(16, norm_cfg=dict(type="GN", num_groups=5)), "of 16 channels"),
    ],
)
def test_bad_arguments_are_one_line(build: Build, message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)
