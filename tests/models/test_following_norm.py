"""A layer with norms of its own takes the place of the norm after the convolution too."""

from __future__ import annotations

import copy

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

import rednet
from rednet.checkpoint.plain_weights import compare_with_checkpoint
from rednet.errors import ArgumentError
from rednet.layers import ACBlock
from rednet.models import swap_conv
from tests.layers.cases import randomized

ACB = dict(type="ACBlock")


def network(bias: bool = False, **norm: float) -> nn.Sequential:
    """Two convolutions with norms, one of them inside a module of its own."""
    inner = nn.Sequential(nn.Conv2d(6, 6, 3, bias=bias), nn.BatchNorm2d(6, **norm))
    layers = nn.Conv2d(4, 6, 3, padding=1, bias=bias), nn.BatchNorm2d(6, **norm), nn.ReLU(), inner
    return randomized(nn.Sequential(*layers))


def swapped(**conv_cfg: object) -> nn.Module:
    return swap_conv(network(), {**ACB, **conv_cfg}, take_norm=True)


def test_the_norm_goes_and_no_parameter_is_left_of_it() -> None:
    module = swapped()
    assert isinstance(module[0], ACBlock) and isinstance(module[3][0], ACBlock)
    assert type(module[1]) is nn.Identity and type(module[3][1]) is nn.Identity
    kernels = 4 * 6 * (9 + 3 + 3) + 6 * 6 * (9 + 3 + 3)
    assert sum(each.numel() for each in module.parameters()) == kernels + 2 * 3 * 2 * 6


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("use_affine", [True, False])
@pytest.mark.parametrize("loader", ["torch", "mmengine", "copy", "in a model"])
def test_plain_weights_load_with_their_norms(bias: bool, use_affine: bool, loader: str) -> None:
    plain = network(bias, eps=1e-3).eval()
    config = dict(ACB, use_affine=use_affine)
    ours = swap_conv(
        copy.deepcopy(plain) if loader == "copy" else network(bias, eps=1e-3),
        config,
        take_norm=True,
        copy_weights=loader == "copy",
    )
    if loader == "torch":
        ours.load_state_dict(plain.state_dict())
    elif loader == "mmengine":
        load_state_dict(ours, plain.state_dict(), strict=True)
    elif loader == "in a model":
        model = nn.ModuleDict({"backbone": ours})
        model.load_state_dict({f"backbone.{k}": v for k, v in plain.state_dict().items()})
    image = torch.rand(2, 4, 9, 9)
    torch.testing.assert_close(ours.eval()(image), plain(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("use_affine", [True, False])
def test_a_norm_without_scale_loads(use_affine: bool) -> None:
    plain = network(bias=True, affine=False).eval()
    ours = swap_conv(network(bias=True), dict(ACB, use_affine=use_affine), take_norm=True)
    ours.load_state_dict(plain.state_dict())
    image = torch.rand(2, 4, 9, 9)
    torch.testing.assert_close(ours.eval()(image), plain(image), rtol=1e-4, atol=1e-5)


def test_training_wakes_the_thin_kernels() -> None:
    ours = swapped()
    ours.load_state_dict(network().state_dict())
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    before = ours[0].ver_conv.weight.clone()
    for _ in range(2):  # the scales of their norms start at zero
        optimizer.zero_grad()
        ours(torch.rand(4, 4, 9, 9)).square().mean().backward()
        optimizer.step()
    assert not torch.equal(ours[0].ver_conv.weight, before)


def test_its_own_checkpoint_and_a_copy_load() -> None:
    ours = randomized(swapped())
    other = copy.deepcopy(swapped())
    other.load_state_dict(ours.state_dict())
    image = torch.rand(2, 4, 9, 9)
    assert torch.equal(other.eval()(image), ours.eval()(image))
    other.load_state_dict(network().state_dict())  # the copy has the hook


def test_the_report_counts_the_norms_as_used() -> None:
    report = compare_with_checkpoint(swapped(), network().state_dict())
    assert report.expanded == ["0", "3.0"] and not report.unused
    # the thin kernels
    assert sorted(report.initial) == [
        f"{name}.{side}_conv.weight" for name in ("0", "3.0") for side in ("hor", "ver")
    ]


def test_the_branches_get_the_type_and_the_settings_of_the_norm() -> None:
    plain = nn.Sequential(nn.Conv2d(4, 6, 3), nn.SyncBatchNorm(6, eps=1e-3, momentum=0.01))
    plain[1].requires_grad_(False)
    block = swap_conv(plain, dict(ACB, gamma_init=1 / 3), take_norm=True)[0]
    for norm in (block.square_bn, block.ver_bn, block.hor_bn):
        assert type(norm) is nn.SyncBatchNorm
        assert (norm.eps, norm.momentum, norm.weight.requires_grad) == (1e-3, 0.01, False)
        assert torch.equal(norm.weight, torch.full((6,), 1 / 3))


def test_the_deployed_form_has_the_keys_of_the_fused_network() -> None:
    ours = randomized(swapped()).eval()
    image = torch.rand(2, 4, 9, 9)
    expected = ours(image)
    fused, plain = rednet.switch_to_deploy(ours), rednet.switch_to_deploy(network())
    assert list(fused.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(fused.state_dict())
    torch.testing.assert_close(plain(image), expected, rtol=1e-4, atol=1e-5)


def test_a_conv_module_runs_without_its_norm() -> None:
    module = ConvModule(4, 6, 3, norm_cfg=dict(type="BN"))
    swap_conv(module, ACB, take_norm=True)
    assert module(torch.rand(2, 4, 9, 9)).shape == (2, 6, 7, 7)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.second, self.other = self.first, nn.BatchNorm2d(4)


@pytest.mark.parametrize(
    ("module", "conv_cfg", "message"),
    [
        (
            network(),
            dict(type="ODConv2d"),
            "0: take_norm=True needs a layer .* ACBlock, got ODConv2d",
        ),
        (nn.Conv2d(4, 4, 3), ACB, "the module: take_norm=True needs a batch norm .* got nothing"),
        (nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()), ACB, "0: .* got ReLU"),
        (nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(8)), ACB, "0: .* got BatchNorm2d"),
        (nn.Sequential(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4)), ACB, "0: .* got GroupNorm"),
        (Shared(), ACB, "first: take_norm=True cannot serve a convolution that is shared"),
    ],
)
def test_where_there_is_no_norm_to_take_nothing_is_changed(
    module: nn.Module, conv_cfg: dict, message: str
) -> None:
    before = str(module)
    with pytest.raises(ArgumentError, match=message):
        swap_conv(module, conv_cfg, take_norm=True)
    assert str(module) == before
