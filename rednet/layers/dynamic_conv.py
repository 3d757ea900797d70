"""Dynamic convolution: attention over convolution kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmengine.model import kaiming_init
from torch import Tensor, nn

from rednet.arguments import positive_int, positive_number
from rednet.layers.base import pointwise
from rednet.layers.gradient_strides import keep_gradient_strides
from rednet.layers.mixture import MixtureConvLayer
from rednet.ops.geometry import IntOrPair
from rednet.registry import CONV_LAYERS


@CONV_LAYERS.register_module()
class DynamicConv2d(MixtureConvLayer):
    """Convolution whose kernel, and bias, is for each image a weighted average of several.

    The weights are the softmax of a squeeze-and-excitation network's output over a temperature. A
    high temperature makes them nearly equal, so that all kernels learn from the start;
    ``TemperatureAnnealHook`` then lowers it to 1.

    From `Dynamic Convolution: Attention over Convolution Kernels
    <https://arxiv.org/abs/1912.03458>`_. The state_dict has the published keys, and
    ``temperature``, which is 1 where a checkpoint lacks it.

    A plain convolution's checkpoint loads: every kernel becomes the plain one, and because the
    weights sum to 1 the layer computes what the convolution computed, at every temperature.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Height and width of the kernels.
        stride: Step between output pixels.
        padding: Pixels added on both ends of each side, or ``'same'`` or ``'valid'``.
        dilation: Distance between kernel elements.
        groups: Blocks that the channels are split into.
        bias: Whether each kernel comes with a bias.
        padding_mode: ``'zeros'``, ``'reflect'``, ``'replicate'`` or ``'circular'``.
        num_kernels: Number of kernels.
        ratio: The attention's hidden width over ``in_channels``; it is rounded down, and one is
            added.

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
        num_kernels: int = 4,
        ratio: float = 0.25,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            padding_mode,
            experts=positive_int("num_kernels", num_kernels),
        )
        self.num_kernels = num_kernels
        self.ratio = positive_number("ratio", ratio)
        # As published: an image's 3 channels would leave a single hidden value.
        hidden = num_kernels if in_channels == 3 else int(in_channels * ratio) + 1
        self.attention = _Attention(in_channels, hidden, num_kernels)
        if bias:
            self.bias = nn.Parameter(torch.empty(num_kernels, out_channels))
        else:
            self.register_parameter("bias", None)
        self.init_weights()
        keep_gradient_strides(self)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Kaiming initialization, each kernel on its own; zero for the biases."""
        for kernel in self.weight:
            nn.init.kaiming_uniform_(kernel)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self.attention.init_weights()

    def convolve_checked(self, input: Tensor) -> Tensor:
        """Computes the output, (N, out_channels, Ho, Wo)."""
        routing = F.softmax(self.attention(input) / self.temperature, dim=1)
        bias = None if self.bias is None else routing @ self.bias
        return self.convolve_mixed(input, routing, bias)

    def adapt_plain_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every kernel is the convolution's: their average is too, whatever the attention says."""
        return self.repeated_state(state)

    def extra_repr(self) -> str:
        """``nn.Conv2d``'s description and the layer's own arguments."""
        return f"{super().extra_repr()}, num_kernels={self.num_kernels}, ratio={self.ratio}"


class _Attention(nn.Module):
    """Squeeze and excitation, with one logit for each kernel."""

    def __init__(self, channels: int, hidden: int, num_kernels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.fc2 = nn.Conv2d(hidden, num_kernels, 1)

    def init_weights(self) -> None:
        for convolution in (self.fc1, self.fc2):
            kaiming_init(convolution)

    def forward(self, input: Tensor) -> Tensor:
        """Maps (N, channels, H, W) to (N, num_kernels)."""
        hidden = F.relu(pointwise(self.fc1, input.mean((2, 3))))
        return pointwise(self.fc2, hidden)
