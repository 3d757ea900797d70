from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from mmcv.cnn import ConvAWS2d as PublishedConvAWS2d
from mmcv.cnn import ConvModule
from torch import Tensor, nn

import rednet
from rednet.layers import ACBlock, ConvAWS2d, Involution2d, SAConv2d, SPConv2d
from rednet.layers.base import registered_layers
from rednet.models import RedNet
from rednet.registry import MODELS
from tests.layers.cases import randomized

TWO_STAGES = dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1))


def _norms(model: nn.Module) -> list[str]:
    return [name for name, each in model.named_modules() if isinstance(each, nn.BatchNorm2d)]


def _agrees(model: nn.Module, image: Tensor) -> nn.Module:
    expected = copy.deepcopy(model).eval()(image)
    fused = rednet.switch_to_deploy(model)
    torch.testing.assert_close(fused(image), expected, rtol=1e-4, atol=1e-4)
    return fused


@pytest.mark.parametrize("name", registered_layers())
def test_every_layer_in_a_conv_module_computes_the_same(name: str) -> None:
    module = ConvModule(
        16, 16, 3, padding=1, conv_cfg=dict(type=name), norm_cfg=dict(type="BN"), bias=False
    )
    fused = _agrees(randomized(module), torch.randn(2, 16, 7, 9))
    assert fused is module and not fused.training


@pytest.mark.parametrize(
    ("layer", "keys"),
    [
        (ConvAWS2d, ["conv.weight", "conv.bias"]),
        (ACBlock, ["conv.weight", "conv.bias"]),
        (nn.Conv2d, ["conv.weight", "conv.bias"]),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_what_becomes_a_convolution_takes_the_norm_after_it(
    layer: type[nn.Module], keys: list[str], bias: bool
) -> None:
    module = ConvModule(4, 6, 3, conv_cfg=dict(type=layer), norm_cfg=dict(type="BN"), bias=bias)
    assert list(_agrees(randomized(module), torch.randn(2, 4, 5, 5)).state_dict()) == keys


def test_a_layer_that_is_the_model_is_replaced() -> None:
    fused = _agrees(randomized(ConvAWS2d(4, 6, 3)), torch.randn(2, 4, 5, 5))
    assert type(fused) is nn.Conv2d


@pytest.mark.parametrize("layer", [SAConv2d, SPConv2d, Involution2d])
def test_norms_inside_the_layers_are_folded(layer: type[nn.Module]) -> None:
    fused = _agrees(randomized(layer(16, 16, 3, padding=1)), torch.randn(2, 16, 5, 5))
    assert not _norms(fused)


def test_in_a_backbone_the_norms_after_convolutions_are_folded() -> None:
    model = RedNet(26, stem_channels=32, base_channels=16, **TWO_STAGES)
    randomized(model).eval()
    image = torch.randn(1, 3, 32, 32)
    expected = model(image)
    assert rednet.switch_to_deploy(model) is model
    assert _norms(model) == ["stem.2", "layer1.0.bn2", "layer2.0.bn2", "layer2.1.bn2"]
    for actual, tensor in zip(model(image), expected, strict=True):
        torch.testing.assert_close(actual, tensor, rtol=1e-3, atol=1e-3)


class _Shared(nn.Module):
    """One convolution before two norms, as in heads that share convolutions between levels."""

    def __init__(self) -> None:
        super().__init__()
        first = ConvModule(4, 4, 3, padding=1, norm_cfg=dict(type="BN"))
        second = ConvModule(4, 4, 3, padding=1, norm_cfg=dict(type="BN"))
        second.conv = first.conv
        self.levels = nn.ModuleList([first, second])

    def forward(self, image: Tensor) -> list[Tensor]:
        return [level(image) for level in self.levels]


def test_a_convolution_before_several_norms_keeps_them() -> None:
    model = randomized(_Shared())
    assert len(_norms(rednet.switch_to_deploy(model))) == 2


@pytest.mark.parametrize(
    "model",
    [
        ConvModule(4, 4, 3, norm_cfg=dict(type="BN"), order=("norm", "conv", "act")),
        ConvModule(4, 4, 3, norm_cfg=dict(type="BN"), order=("conv", "act", "norm")),
        ConvModule(4, 4, 3, norm_cfg=dict(type="BN"), with_spectral_norm=True),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        nn.Sequential(PublishedConvAWS2d(4, 4, 3), nn.BatchNorm2d(4)),
        nn.Sequential(Involution2d(16, 16, 3), nn.BatchNorm2d(16)),
    ],
    ids=lambda model: str(type(model[0] if isinstance(model, nn.Sequential) else model).__name__),
)
def test_what_is_no_convolution_with_its_norm_is_left(model: nn.Module) -> None:
    channels = model[0].in_channels if isinstance(model, nn.Sequential) else 4
    randomized(model)
    with torch.no_grad():
        model(torch.randn(2, channels, 9, 9))  # a spectral norm settles in training
    image = torch.randn(2, channels, 9, 9)
    outer = [name for name in _norms(model) if "conv1" not in name]
    assert _norms(_agrees(model, image)) == outer


class _Odd(nn.Module):
    """Registers a norm after a convolution whose output it does not normalize."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv(self.norm(image))


def test_a_norm_that_only_seems_to_follow_is_found() -> None:
    with pytest.raises(RuntimeError, match="some norm does not follow the convolution"):
        rednet.switch_to_deploy(randomized(_Odd()))


def test_a_layer_that_fuses_wrongly_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fuse = ACBlock.fuse

    def wrong(block: ACBlock) -> tuple[Tensor, Tensor]:
        weight, bias = fuse(block)
        return weight, bias + (1 if block.in_channels == 6 else 0)

    model = nn.Sequential(ACBlock(4, 6, 3), nn.ReLU(), ACBlock(6, 4, 3))
    randomized(model)
    monkeypatch.setattr(ACBlock, "fuse", wrong)
    monkeypatch.setattr(ACBlock, "forward", _by_branches)
    with pytest.raises(RuntimeError, match="^2 computes something else after it was fused: .* off"):
        rednet.switch_to_deploy(model)


def _by_branches(block: ACBlock, image: Tensor) -> Tensor:
    if block.deploy:
        return block.fused_conv(image)
    square = block.square_bn(block.square_conv(image))
    ver = block.ver_bn(block.ver_conv(image[..., 1:-1]))
    return square + ver + block.hor_bn(block.hor_conv(image[..., 1:-1, :]))


def test_a_model_that_does_not_run_on_images_needs_run() -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 2)
        )

    with pytest.raises(ValueError, match=r"does not run on random images of shape \(2, 3, 64, 64"):
        rednet.switch_to_deploy(model())
    image = torch.randn(2, 3, 8, 8)
    fused = rednet.switch_to_deploy(model(), lambda each: {"scores": [each(image)]})
    torch.testing.assert_close(fused(image), model().eval()(image))
    with pytest.raises(TypeError, match="run must return tensors, got int"):
        rednet.switch_to_deploy(model(), lambda each: 1)


def test_models_with_nothing_to_compare_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to fuse: Linear has no convolution"):
        rednet.switch_to_deploy(nn.Linear(2, 2))
    model = nn.Conv2d(1, 1, 1)
    nn.init.constant_(model.weight, torch.nan)
    with pytest.raises(ValueError, match="not finite even before it is fused"):
        rednet.switch_to_deploy(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_every_dtype(dtype: torch.dtype) -> None:
    model = nn.Sequential(ACBlock(3, 8, 3), nn.BatchNorm2d(8, affine=False)).to(dtype)
    fused = rednet.switch_to_deploy(model)
    assert {parameter.dtype for parameter in fused.parameters()} == {dtype}


def _config() -> dict[str, Any]:
    return dict(
        type="SwapConv",
        module=dict(type="RedNet", depth=26, stem_channels=32, base_channels=16, **TWO_STAGES),
        conv_cfg=dict(type="ACBlock"),
        include=r"stem\.4",
    )


def test_deployed_builds_the_fused_form() -> None:
    config = _config()
    trained = randomized(MODELS.build(copy.deepcopy(config)))
    rednet.switch_to_deploy(trained)
    built = MODELS.build(dict(type="Deployed", module=config))
    built.load_state_dict(trained.state_dict(), strict=True)
    image = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(built(image), trained(image))
    assert not built.training


def test_deployed_passes_on_what_is_injected() -> None:
    built = MODELS.build(dict(type="Deployed", module=_config(), out_indices=(0,)))
    assert built.out_indices == (0,)
    with pytest.raises(TypeError, match="module must be a config dict with the key 'type', got 1"):
        MODELS.build(dict(type="Deployed", module=1))
