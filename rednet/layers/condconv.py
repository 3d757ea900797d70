"""Conditionally parameterized convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rednet.arguments import positive_int
from rednet.layers.gradient_strides import keep_gradient_strides
from rednet.layers.mixture import MixtureConvLayer
from rednet.ops.geometry import IntOrPair
from rednet.registry import CONV_LAYERS


@CONV_LAYERS.register_module()
class CondConv2d(MixtureConvLayer):
    """Convolution whose kernel, and bias, is for each image a weighted sum of several experts.

    The weights are the sigmoid of a linear function of the image's global average. The logits are
    divided by a temperature; at 1, where it starts, the layer is the published one.

    From `CondConv: Conditionally Parameterized Convolutions for Efficient Inference
    <https://arxiv.org/abs/1904.04971>`_. The publication shares one routing among the layers of a
    block; here each layer routes by its own input.

    A plain convolution's checkpoint loads, and the layer then computes what the convolution
    computed, at every temperature: experts work in pairs whose logits are opposite, so that the
    weights of each pair sum to 1 for every image, while each expert alone still depends on it.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Height and width of the kernels.
        stride: Step between output pixels.
        padding: Pixels added on both ends of each side, or ``'same'`` or ``'valid'``.
        dilation: Distance between kernel elements.
        groups: Blocks that the channels are split into.
        bias: Whether each expert comes with a bias.
        padding_mode: ``'zeros'``, ``'reflect'``, ``'replicate'`` or ``'circular'``.
        num_experts: Number of experts.

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
        num_experts: int = 8,
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
            experts=positive_int("num_experts", num_experts),
        )
        self.num_experts = num_experts
        self.routing_fn = nn.Linear(in_channels, num_experts)
        if bias:
            self.bias = nn.Parameter(torch.empty(num_experts, out_channels))
        else:
            self.register_parameter("bias", None)
        self.init_weights()
        keep_gradient_strides(self)

    @torch.no_grad()
    def init_weights(self) -> None:
        """``nn.Conv2d``'s initialization for each expert by itself, ``nn.Linear``'s for routing."""
        for expert in self.weight:
            nn.init.kaiming_uniform_(expert, a=5**0.5)
        if self.bias is not None:
            bound = self.weight[0, 0].numel() ** -0.5
            nn.init.uniform_(self.bias, -bound, bound)
        self.routing_fn.reset_parameters()

    def convolve_checked(self, input: Tensor) -> Tensor:
        """Computes the output, (N, out_channels, Ho, Wo)."""
        logits = self.routing_fn(input.mean((2, 3)))
        routing = torch.sigmoid(logits / self.temperature)
        bias = None if self.bias is None else routing @ self.bias
        return self.convolve_mixed(input, routing, bias)

    @torch.no_grad()
    def adapt_plain_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Pairs of experts with opposite logits: sigmoid(z) + sigmoid(-z) = 1."""
        share = 2 / self.num_experts  # the sigmoids sum to num_experts / 2
        return {
            **self.repeated_state({key: value * share for key, value in state.items()}),
            "routing_fn.weight": _opposed(self.routing_fn.weight),
            "routing_fn.bias": _opposed(self.routing_fn.bias),
        }

    def extra_repr(self) -> str:
        """``nn.Conv2d``'s description and the layer's own argument."""
        return f"{super().extra_repr()}, num_experts={self.num_experts}"


def _opposed(rows: Tensor) -> Tensor:
    """The first half of the rows, the negative of it, and zero for one that is left over."""
    half = rows[: len(rows) // 2]
    return torch.cat((half, -half, torch.zeros_like(rows[2 * len(half) :])))
