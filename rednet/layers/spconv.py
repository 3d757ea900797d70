"""Split-based convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rednet.arguments import positive_number
from rednet.errors import ArgumentError
from rednet.layers.base import ConvLayer, global_average, is_unmodified
from rednet.layers.folding import fold, has_statistics, scale_and_shift
from rednet.layers.gradient_strides import keep_gradient_strides
from rednet.ops.geometry import IntOrPair
from rednet.registry import CONV_LAYERS

GROUPS = 2


@CONV_LAYERS.register_module()
class SPConv2d(ConvLayer):
    """Split-based convolution: a full kernel for some of the channels, 1 x 1 kernels for the rest.

    The first ``ratio`` of the channels goes through the kernel in two groups and, for what the
    groups keep apart, through a 1 x 1 convolution. The other channels, taken to be redundant, go
    through a 1 x 1 convolution only. The two results, each normalized, are summed with weights
    per channel: a softmax over their global averages. With a stride, the 1 x 1 convolutions see
    the average of the ``stride`` x ``stride`` pixels at the window's center.

    From `Split to Be Slim: An Overlooked Redundancy in Vanilla Convolution
    <https://arxiv.org/abs/2006.12085>`_. The state_dict has the published keys.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, an even number.
        kernel_size: Height and width of the kernel; 3 in the paper.
        stride: Step between output pixels.
        padding: Pixels added on both ends of each side, or ``'same'`` or ``'valid'``.
        dilation: Distance between kernel elements.
        groups: Must be 1: the layer splits the channels itself.
        bias: No effect: the norms of both parts have a bias.
        padding_mode: ``'zeros'``, ``'reflect'``, ``'replicate'`` or ``'circular'``.
        ratio: Share of the input channels that the kernel sees. Both parts must hold channels,
            and the kernel's part an even number.

    Shape:
        - Input: (N, in_channels, H, W)
        - Output: (N, out_channels, Ho, Wo), as ``nn.Conv2d`` gives for the same arguments.

    Raises:
        TypeError: If an argument has the wrong type.
        ArgumentError: If an argument has an unsupported value.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrPair,
        stride: IntOrPair = 1,
        padding: str | IntOrPair = 0,
        dilation: IntOrPair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        ratio: float = 0.5,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode
        )
        if groups != 1:
            raise ArgumentError(
                f"groups must be 1, got {groups}: SPConv2d splits the channels itself"
            )
        if out_channels % GROUPS:
            raise ArgumentError(f"out_channels must be a multiple of {GROUPS}, got {out_channels}")
        self.register_parameter("bias", None)
        self.ratio = positive_number("ratio", ratio)
        self.split = split = _split(in_channels, ratio)
        # The norms come first, because tools that fold a norm into the convolution registered
        # before it must not take any of these for such a pair.
        self.bn1: nn.BatchNorm2d | nn.Identity = nn.BatchNorm2d(out_channels)
        self.bn2: nn.BatchNorm2d | nn.Identity = nn.BatchNorm2d(out_channels)
        self.gwc = nn.Conv2d(
            split[0],
            out_channels,
            self.kernel_size,
            self.stride,
            self.kernel_padding,
            self.dilation,
            GROUPS,
            bias=False,
        )
        self.pwc = nn.Conv2d(split[0], out_channels, 1, bias=False)
        self.conv1x1 = nn.Conv2d(split[1], out_channels, 1)
        self.init_weights()
        keep_gradient_strides(self)

    def init_weights(self) -> None:
        """Kaiming initialization by fan-out for the kernels, as in the published network."""
        for module in self.children():
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
                module.reset_parameters()
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def convolve_checked(self, input: Tensor) -> Tensor:
        """Computes the output, (N, out_channels, Ho, Wo)."""
        kept = input[:, : self.split[0]]
        kept_centers, rest_centers = self.window_centers(input).split(self.split, dim=1)
        full = self.bn1(self._summed(self.gwc(self.pad(kept)[0]), self.pwc(kept_centers)))
        slim = self.bn2(self.conv1x1(rest_centers))
        # A softmax over two averages is a sigmoid of their difference. In place if nothing keeps
        # the operand: fresh memory costs more than the arithmetic.
        in_place = is_unmodified(self.bn1, nn.BatchNorm2d)
        difference = full.sub_(slim) if in_place else full - slim
        share = torch.sigmoid(global_average(difference))
        return (share * difference).add_(slim)

    def _summed(self, full: Tensor, center: Tensor) -> Tensor:
        return full.add_(center) if is_unmodified(self.gwc, nn.Conv2d) else full + center

    def switch_to_deploy(self) -> nn.Module:
        """The layer itself, with both norms folded into its convolutions."""
        if has_statistics(self.bn1):
            scale, shift = scale_and_shift(self.bn1)
            fold(self.gwc, scale, shift)
            fold(self.pwc, scale)
            self.bn1 = nn.Identity()
        if has_statistics(self.bn2):
            fold(self.conv1x1, *scale_and_shift(self.bn2))
            self.bn2 = nn.Identity()
        return self


def _split(in_channels: int, ratio: float) -> tuple[int, int]:
    """How many channels the kernel sees, and how many it does not.

    Raises:
        ArgumentError: If a part has no channels, or the kernel's cannot be split in two groups.
    """
    kept = int(in_channels * ratio)
    if not 0 < kept < in_channels:
        raise ArgumentError(
            f"ratio must leave channels to both parts: ratio={ratio} of in_channels={in_channels} "
            f"gives {kept} and {in_channels - kept}"
        )
    if kept % GROUPS:
        raise ArgumentError(
            f"the kernel's part of the channels is split in {GROUPS} groups: ratio={ratio} of "
            f"in_channels={in_channels} gives {kept}, which is not a multiple of {GROUPS}"
        )
    return kept, in_channels - kept
