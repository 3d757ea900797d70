"""Convolutions whose place no layer may take in silence, and those of mmcv that it may."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from mmcv.cnn import Conv2d as WrappedConv2d
from mmcv.cnn.bricks.conv2d_adaptive_padding import Conv2dAdaptivePadding
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from rednet.deploy import switch_to_deploy
from rednet.errors import ArgumentError
from rednet.layers.base import registered_layers
from rednet.models import swap_conv


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [(13, 17), (12, 16), (7, 8)])
@pytest.mark.parametrize("name", sorted(registered_layers()))
def test_adaptive_padding_is_taken_over(name: str, size: tuple[int, int], stride: int) -> None:
    convolution = Conv2dAdaptivePadding(16, 16, 3, stride=stride, bias=False)
    layer = swap_conv(copy.deepcopy(convolution), dict(type=name), copy_weights=True).eval()
    image = torch.randn(2, 16, *size)
    expected = convolution(image)
    assert layer(image).shape == expected.shape
    if name in ("ConvAWS2d", "SAConv2d", "ACBlock", "CondConv2d", "DynamicConv2d", "ODConv2d"):
        torch.testing.assert_close(layer(image), expected, atol=1e-4, rtol=1e-4)
        deployed = switch_to_deploy(nn.Sequential(layer))
        torch.testing.assert_close(deployed(image), expected, atol=1e-4, rtol=1e-4)


def test_condconv_goes_into_efficientnet() -> None:
    pytest.importorskip("mmpretrain.models")
    model = MODELS.build(dict(type="mmpretrain.EfficientNet", arch="b0"))
    model.eval()  # its train() returns None
    image = torch.randn(1, 3, 65, 65)
    expected = model(image)[0].shape
    swap_conv(model, dict(type="CondConv2d"), include="depthwise")
    assert model(image)[0].shape == expected


class _Forward(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input - input.mean())


class _ConvForward(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight - weight.mean(), bias)


class _Call(nn.Conv2d):
    def __call__(self, input: Tensor) -> Tensor:
        return super().__call__(input).relu()


class _PaddedAndMore(Conv2dAdaptivePadding):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


def _with_a_forward_of_its_own(*args: int) -> nn.Conv2d:
    convolution = nn.Conv2d(*args)
    convolution.forward = lambda input: input
    return convolution


@pytest.mark.parametrize(
    "kind", [_Forward, _ConvForward, _Call, _PaddedAndMore, _with_a_forward_of_its_own]
)
@pytest.mark.parametrize("copy_weights", [False, True])
def test_another_computation_is_refused(kind: Callable, copy_weights: bool) -> None:
    model = nn.Sequential(kind(16, 16, 3), nn.Conv2d(16, 16, 3))
    before = list(model)
    with pytest.raises(ArgumentError, match="^0: .* computes something else .* exclude$") as error:
        swap_conv(model, dict(type="ODConv2d"), copy_weights=copy_weights)
    assert "\n" not in str(error.value) and list(model) == before
    swap_conv(model, dict(type="ODConv2d"), exclude="^0$")


class _Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def _doubled_bias(convolution: nn.Module) -> nn.Module:
    parametrize.register_parametrization(convolution, "bias", _Doubled())
    return convolution


COMPUTED = [
    parametrizations.weight_norm,
    parametrizations.spectral_norm,
    nn.utils.weight_norm,
    nn.utils.spectral_norm,
    lambda convolution: prune.l1_unstructured(convolution, "weight", amount=0.5),
    _doubled_bias,
]


@pytest.mark.parametrize("change", COMPUTED)
@pytest.mark.filterwarnings("ignore:.*_norm.*:FutureWarning")
def test_computed_weights_are_refused_or_copied(change: Callable) -> None:
    model, image = nn.Sequential(change(nn.Conv2d(4, 8, 3))).eval(), torch.randn(1, 4, 6, 6)
    expected = model(image)
    with pytest.raises(ArgumentError, match="^0: its (weight|bias) is computed") as error:
        swap_conv(model, dict(type="ConvAWS2d"))
    assert "\n" not in str(error.value)
    swap_conv(model, dict(type="ConvAWS2d"), copy_weights=True)
    torch.testing.assert_close(model(image), expected)


@pytest.mark.parametrize(
    "register",
    [
        lambda convolution: convolution.register_forward_hook(lambda *_: None),
        lambda convolution: convolution.register_forward_pre_hook(lambda *_: None),
        lambda convolution: convolution.register_full_backward_hook(lambda *_: None),
    ],
)
def test_hooks_are_not_dropped_in_silence(register: Callable) -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 3))
    handle = register(model[0])
    with pytest.raises(ArgumentError, match="^0: it has hooks"):
        swap_conv(model, dict(type="ODConv2d"))
    handle.remove()
    swap_conv(model, dict(type="ODConv2d"))


def test_mmcvs_own_convolution_is_a_plain_one() -> None:
    model = swap_conv(nn.Sequential(WrappedConv2d(16, 16, 3)), dict(type="ODConv2d"))
    assert type(model[0]) is registered_layers()["ODConv2d"]
