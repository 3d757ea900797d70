"""The residual block of RedNet, with an involution in place of ResNet's 3 x 3 convolution."""

from __future__ import annotations

import torch.utils.checkpoint as checkpoint
from mmcv.cnn import build_conv_layer, build_norm_layer
from mmcv.cnn.bricks.drop import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn

from rednet.layers.base import is_unmodified
from rednet.layers.finishing import finish, may_finish
from rednet.layers.involution import Involution2d
from rednet.layers.recomputing import consume
from rednet.models.argument_checks import OptionalConfig

EXPANSION = 4


class Bottleneck(BaseModule):
    """1 x 1 convolution, involution, 1 x 1 convolution, each with a norm, around a shortcut.

    Args:
        in_channels: Channels of the input.
        mid_channels: Channels of the involution; the block gives four times as many.
        kernel_size: Kernel size of the involution.
        involution_cfg: Other arguments of the involution.
        stride: Stride of the block.
        dilation: Dilation of the involution.
        style: ``'pytorch'`` strides in the involution, ``'caffe'`` in the first 1 x 1 convolution.
        avg_down: Whether the shortcut strides by average pooling rather than by its convolution.
        conv_cfg: Config of the 1 x 1 convolutions.
        norm_cfg: Config of the norms.
        with_cp: Whether to recompute the block in the backward pass instead of keeping its
            activations.
        drop_path_rate: Probability that an image skips the residual branch in training.
        init_cfg: Initialization config.
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        *,
        kernel_size: int = 7,
        involution_cfg: OptionalConfig = None,
        stride: int = 1,
        dilation: int = 1,
        style: str = "pytorch",
        avg_down: bool = False,
        conv_cfg: OptionalConfig = None,
        norm_cfg: OptionalConfig = None,
        with_cp: bool = False,
        drop_path_rate: float = 0.0,
        init_cfg: OptionalConfig = None,
    ) -> None:
        super().__init__(init_cfg)
        norm_cfg = norm_cfg or dict(type="BN")
        out_channels = mid_channels * EXPANSION
        strides = (1, stride) if style == "pytorch" else (stride, 1)
        self.with_cp = with_cp
        self.conv1 = build_conv_layer(
            conv_cfg, in_channels, mid_channels, 1, stride=strides[0], bias=False
        )
        self.norm1_name = self._add_norm(norm_cfg, mid_channels, 1)
        self.conv2 = Involution2d(
            mid_channels,
            mid_channels,
            kernel_size,
            stride=strides[1],
            padding=dilation * (kernel_size - 1) // 2,
            dilation=dilation,
            **{"bias": False, "norm_cfg": norm_cfg, **(involution_cfg or {})},
        )
        self.norm2_name = self._add_norm(norm_cfg, mid_channels, 2)
        self.conv3 = build_conv_layer(conv_cfg, mid_channels, out_channels, 1, bias=False)
        self.norm3_name = self._add_norm(norm_cfg, out_channels, 3)
        # Not in place: a full backward hook on the norm before makes its output a view.
        self.relu = nn.ReLU()
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()
        self.downsample = (
            _shortcut(in_channels, out_channels, stride, avg_down, conv_cfg, norm_cfg)
            if stride != 1 or in_channels != out_channels
            else None
        )

    def _add_norm(self, norm_cfg: dict, channels: int, postfix: int) -> str:
        name, norm = build_norm_layer(norm_cfg, channels, postfix=postfix)
        self.add_module(name, norm)
        return name

    @property
    def norm3(self) -> nn.Module:
        """The norm that ends the residual branch."""
        return getattr(self, self.norm3_name)

    def forward(self, input: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, 4 * mid_channels, ceil(H / s), ceil(W / s))."""
        if may_finish(input):
            return self._infer(input)
        if self.training and self.with_cp and input.requires_grad:
            output = checkpoint.checkpoint(self._residual_sum, input, use_reentrant=False)
        else:
            output = self._residual_sum(input)
        return self.relu(output)

    def _infer(self, input: Tensor) -> Tensor:
        """The output without gradients: norms, sum and ReLUs in one pass after each convolution."""
        norm1, norm2 = getattr(self, self.norm1_name), getattr(self, self.norm2_name)
        output = finish(self.conv1, input, norm1, self.relu)
        output = finish(self.conv2, output, norm2, self.relu, makers=(Involution2d,))
        shortcut = input if self.downsample is None else _infer_shortcut(self.downsample, input)
        if is_unmodified(self.drop_path, nn.Identity):
            return finish(self.conv3, output, self.norm3, self.relu, shortcut)
        return self.relu(self.drop_path(self.norm3(self.conv3(output))) + shortcut)

    def _residual_sum(self, input: Tensor) -> Tensor:
        norm1, norm2 = getattr(self, self.norm1_name), getattr(self, self.norm2_name)
        output = consume(norm1, self.relu, self.conv1(input), self.conv2)
        output = consume(norm2, self.relu, output, self.conv3)
        output = self.drop_path(self.norm3(output))
        shortcut = input if self.downsample is None else self.downsample(input)
        # A batch norm does not keep its output, and fresh memory costs more than the sum.
        # Autocast may leave the shortcut wider: the sum is then as wide, as it is in inference.
        # torch.fx cannot compare: its proxies are no tensors.
        as_wide = not isinstance(output, Tensor) or output.dtype == shortcut.dtype
        in_place = self._adds_in_place() and as_wide
        return output.add_(shortcut) if in_place else output + shortcut

    def _adds_in_place(self) -> bool:
        return is_unmodified(self.norm3, nn.BatchNorm2d) and is_unmodified(
            self.drop_path, nn.Identity
        )


def _infer_shortcut(downsample: nn.Sequential, input: Tensor) -> Tensor:
    if not is_unmodified(downsample, nn.Sequential) or len(downsample) < 2:
        return downsample(input)
    *pooling, convolution, norm = downsample
    for module in pooling:
        input = module(input)
    return finish(convolution, input, norm, None)


def _shortcut(
    in_channels: int,
    out_channels: int,
    stride: int,
    avg_down: bool,
    conv_cfg: OptionalConfig,
    norm_cfg: dict,
) -> nn.Sequential:
    layers: list[nn.Module] = []
    if avg_down and stride != 1:
        layers.append(nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False))
        stride = 1
    convolution = build_conv_layer(
        conv_cfg, in_channels, out_channels, 1, stride=stride, bias=False
    )
    layers.append(convolution)
    layers.append(build_norm_layer(norm_cfg, out_channels)[1])
    return nn.Sequential(*layers)
