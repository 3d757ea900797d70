"""Backbones for images of 32 x 32 pixels, such as CIFAR-10's."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from mmcv.cnn import ConvModule, build_conv_layer, build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from rednet.arguments import is_positive_int
from rednet.errors import ArgumentError
from rednet.models.argument_checks import (
    OptionalConfig,
    check_layer_cfgs,
    check_multiple,
    check_norm,
)
from rednet.registry import MODELS

STAGES = 3


@MODELS.register_module()
class CifarQuick(BaseModule):
    """Caffe's ``cifar10_quick``, with a batch norm after each 5 x 5 convolution.

    As ACNet's authors have it (https://github.com/DingXiaoH/ACNet): the poolings round sizes down,
    where Caffe's round up, and a ReLU comes before each of them.

    Args:
        in_channels: Channels of the image.
        conv_cfg: Config of the convolutions.
        norm_cfg: Config of the norms; None for batch norms.
        init_cfg: Initialization config; None for that of PyTorch.

    Shape:
        - Input: (N, in_channels, H, W)
        - Output: a tuple of one map, (N, 64, H', W'), where H' is H after three times
          ``(H - 1) // 2``: (N, 64, 3, 3) for 32 x 32 pixels.

    Raises:
        ArgumentError: If an argument has an unsupported value.

    Examples:
        >>> import torch
        >>> from rednet.models import CifarQuick
        >>> CifarQuick()(torch.rand(2, 3, 32, 32))[0].shape
        torch.Size([2, 64, 3, 3])
    """

    def __init__(
        self,
        in_channels: int = 3,
        conv_cfg: OptionalConfig = None,
        norm_cfg: OptionalConfig = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_multiple("in_channels", in_channels, 1)
        layer_cfgs = _layer_cfgs(conv_cfg, norm_cfg, 32)
        layer = dict(kernel_size=5, padding=2, inplace=False, **layer_cfgs)
        self.conv1 = ConvModule(in_channels, 32, **layer)
        self.pool1 = nn.MaxPool2d(3, stride=2)
        self.conv2 = ConvModule(32, 32, **layer)
        self.pool2 = nn.AvgPool2d(3, stride=2)
        self.conv3 = ConvModule(32, 64, **layer)
        self.pool3 = nn.AvgPool2d(3, stride=2)

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """Maps an image (N, in_channels, H, W) to a tuple of one map."""
        output = self.pool1(self.conv1(input))
        output = self.pool2(self.conv2(output))
        return (self.pool3(self.conv3(output)),)


@MODELS.register_module()
class CifarResNet(BaseModule):
    """ResNet of three stages.

    From `Deep Residual Learning for Image Recognition <https://arxiv.org/abs/1512.03385>`_, section
    4.2. A shortcut that changes the channels is a 1 x 1 convolution and a norm, as ACNet's authors
    have it, where the paper's has no parameters.

    Args:
        depth: Number of layers with the classifier's, 6 n + 2 for n blocks a stage: 20, 56, 110.
        in_channels: Channels of the image.
        base_channels: Channels of the stem and the first stage; each later stage doubles them.
        conv_cfg: Config of the convolutions.
        norm_cfg: Config of the norms; None for batch norms.
        init_cfg: Initialization config; None for that of PyTorch.

    Shape:
        - Input: (N, in_channels, H, W)
        - Output: a tuple of one map, (N, 4 * base_channels, H / 4, W / 4), sizes rounded up.

    Raises:
        ArgumentError: If an argument has an unsupported value.

    Examples:
        >>> import torch
        >>> from rednet.models import CifarResNet
        >>> CifarResNet(20)(torch.rand(2, 3, 32, 32))[0].shape
        torch.Size([2, 64, 8, 8])
    """

    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        base_channels: int = 16,
        conv_cfg: OptionalConfig = None,
        norm_cfg: OptionalConfig = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        blocks = _blocks(depth, 2)
        check_multiple("in_channels", in_channels, 1)
        check_multiple("base_channels", base_channels, 1)
        layer_cfgs = _layer_cfgs(conv_cfg, norm_cfg, base_channels)
        self.conv1 = ConvModule(
            in_channels, base_channels, 3, padding=1, inplace=False, **layer_cfgs
        )
        _add_stages(self, _BasicBlock, blocks, base_channels, base_channels, layer_cfgs)

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """Maps an image (N, in_channels, H, W) to a tuple of one map."""
        return (self.layer3(self.layer2(self.layer1(self.conv1(input)))),)


@MODELS.register_module()
class WideResNet(BaseModule):
    """ResNet of three wide stages, with norm and ReLU before each convolution.

    From `Wide Residual Networks <https://arxiv.org/abs/1605.07146>`_, as ACNet's authors have it: a
    1 x 1 shortcut has a norm and a ReLU of its own, where the published code lets it share those of
    the first convolution, and no ReLU follows the last norm.

    Args:
        depth: Number of convolutions in a row, 6 n + 4 for n blocks a stage: 16, 28, 40.
        widen_factor: What the channels of the stages, 16, 32 and 64, are multiplied by.
        in_channels: Channels of the image.
        conv_cfg: Config of the convolutions.
        norm_cfg: Config of the norms; None for batch norms.
        init_cfg: Initialization config; None for that of PyTorch.

    Shape:
        - Input: (N, in_channels, H, W)
        - Output: a tuple of one map, (N, 64 * widen_factor, H / 4, W / 4), sizes rounded up.

    Raises:
        ArgumentError: If an argument has an unsupported value.

    Examples:
        >>> import torch
        >>> from rednet.models import WideResNet
        >>> WideResNet(16, widen_factor=2)(torch.rand(2, 3, 32, 32))[0].shape
        torch.Size([2, 128, 8, 8])
    """

    def __init__(
        self,
        depth: int,
        widen_factor: int = 1,
        in_channels: int = 3,
        conv_cfg: OptionalConfig = None,
        norm_cfg: OptionalConfig = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        blocks = _blocks(depth, 4)
        check_multiple("widen_factor", widen_factor, 1)
        check_multiple("in_channels", in_channels, 1)
        layer_cfgs = _layer_cfgs(conv_cfg, norm_cfg, 16)
        self.conv1 = ConvModule(
            in_channels, 16, 3, padding=1, bias=False, conv_cfg=conv_cfg, act_cfg=None
        )
        _add_stages(self, _PreactivatedBlock, blocks, 16, 16 * widen_factor, layer_cfgs)
        self.bn = build_norm_layer(layer_cfgs["norm_cfg"], 64 * widen_factor)[1]

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """Maps an image (N, in_channels, H, W) to a tuple of one map."""
        return (self.bn(self.layer3(self.layer2(self.layer1(self.conv1(input))))),)


class _BasicBlock(BaseModule):
    """Two 3 x 3 convolutions with norms around a shortcut, which convolves if channels change."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, **layer_cfgs: Any) -> None:
        super().__init__()
        self.conv1 = ConvModule(
            in_channels, out_channels, 3, stride, padding=1, inplace=False, **layer_cfgs
        )
        self.conv2 = ConvModule(
            out_channels, out_channels, 3, padding=1, act_cfg=None, **layer_cfgs
        )
        self.downsample = (
            ConvModule(in_channels, out_channels, 1, stride, act_cfg=None, **layer_cfgs)
            if in_channels != out_channels
            else nn.Identity()
        )
        self.relu = nn.ReLU()  # not in place, which full backward hooks would forbid

    def forward(self, input: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        return self.relu(self.conv2(self.conv1(input)) + self.downsample(input))


class _PreactivatedBlock(BaseModule):
    """Two times norm, ReLU and 3 x 3 convolution around a shortcut of the same form, or none."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, **layer_cfgs: Any) -> None:
        super().__init__()
        self.conv1 = _preactivated(in_channels, out_channels, 3, stride, **layer_cfgs)
        self.conv2 = _preactivated(out_channels, out_channels, 3, 1, **layer_cfgs)
        self.shortcut = (
            _preactivated(in_channels, out_channels, 1, stride, **layer_cfgs)
            if in_channels != out_channels
            else nn.Identity()
        )

    def forward(self, input: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        return self.conv2(self.conv1(input)) + self.shortcut(input)


def _preactivated(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int,
    conv_cfg: OptionalConfig,
    norm_cfg: dict,
) -> nn.Sequential:
    # Not a ConvModule, whose norm tools fold into the convolution, as if it came after.
    convolution = build_conv_layer(
        conv_cfg,
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        bias=False,
    )
    norm = build_norm_layer(norm_cfg, in_channels)[1]
    return nn.Sequential(OrderedDict(bn=norm, relu=nn.ReLU(), conv=convolution))


def _add_stages(
    backbone: nn.Module,
    block: type[nn.Module],
    blocks: int,
    in_channels: int,
    out_channels: int,
    layer_cfgs: dict[str, Any],
) -> None:
    """Adds ``layer1`` to ``layer3``: the second and third halve the map and double the channels."""
    for stage in range(STAGES):
        layers = []
        for index in range(blocks):
            stride = 2 if stage > 0 and index == 0 else 1
            layers.append(block(in_channels, out_channels, stride, **layer_cfgs))
            in_channels = out_channels
        backbone.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        out_channels *= 2


def _blocks(depth: int, rest: int) -> int:
    """Blocks a stage of a network of ``6 * blocks + rest`` layers."""
    if not is_positive_int(depth) or depth <= rest or (depth - rest) % 6:
        raise ArgumentError(f"depth must be 6 n + {rest} for a positive int n, got {depth!r}")
    return (depth - rest) // 6


def _layer_cfgs(
    conv_cfg: OptionalConfig, norm_cfg: OptionalConfig, channels: int
) -> dict[str, Any]:
    """The checked configs of convolutions and norms, which have ``channels`` at least."""
    check_layer_cfgs(conv_cfg=conv_cfg, norm_cfg=norm_cfg)
    norm_cfg = norm_cfg or dict(type="BN")
    check_norm(norm_cfg, channels)
    return dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg)
