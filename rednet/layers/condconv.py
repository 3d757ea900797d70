"""Conditionally parameterized convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rednet.arguments import positive_int
from rednet.errors import ArgumentError
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
    block: see :meth:`share_routing`. By default each layer routes by its own input.

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
        bias: Whether there is a bias.
        padding_mode: ``'zeros'``, ``'reflect'``, ``'replicate'`` or ``'circular'``.
        num_experts: Number of experts.
        expert_bias: Whether each expert comes with a bias of its own, as in the publication; else
            the layer has one, as in a well-known implementation of its MobileNetV2.

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
        expert_bias: bool = True,
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
        self.expert_bias = expert_bias
        self.routing_fn: nn.Linear | None = nn.Linear(in_channels, num_experts)
        self._shared: _SharedRouting | None = None
        if bias:
            shape = (num_experts, out_channels) if expert_bias else (out_channels,)
            self.bias = nn.Parameter(torch.empty(shape))
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
        if self.routing_fn is not None:
            self.routing_fn.reset_parameters()

    def share_routing(self, first: CondConv2d) -> None:
        """Gives up the layer's own routing and takes that of another layer, which runs before it.

        In the publication, the layers of a block share the routing that the block's input gives:
        ``first`` is then the block's first convolution. ``swap_conv`` and ``SwapConv`` do this by
        their argument ``share_routing``.

        Args:
            first: A layer with as many experts, which computes the routing of each forward pass.

        Raises:
            ArgumentError: If ``first`` has another number of experts, or takes its routing itself.
        """
        if first.num_experts != self.num_experts or first.routing_fn is None or first is self:
            raise ArgumentError(
                "first must be another CondConv2d that routes itself and has "
                f"num_experts={self.num_experts}, got {first}"
            )
        first._shared = first._shared or _SharedRouting()
        first._shared.readers += 1
        self._shared, self.routing_fn = first._shared, None

    def convolve_checked(self, input: Tensor) -> Tensor:
        """Computes the output, (N, out_channels, Ho, Wo)."""
        routing = self._routing(input)
        return self.convolve_mixed(input, routing, self._bias(routing))

    def _bias(self, routing: Tensor) -> Tensor | None:
        """The bias of each image, (N, out_channels)."""
        if self.bias is None:
            return None
        return routing @ self.bias if self.expert_bias else self.bias.expand(len(routing), -1)

    def _routing(self, input: Tensor) -> Tensor:
        """The share of each expert, (N, num_experts)."""
        if self.routing_fn is None:
            assert self._shared is not None
            return self._shared.take()
        logits = self.routing_fn(input.mean((2, 3)))
        routing = torch.sigmoid(logits / self.temperature)
        if self._shared is not None:
            self._shared.put(routing)
        return routing

    @torch.no_grad()
    def adapt_plain_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Pairs of experts with opposite logits: sigmoid(z) + sigmoid(-z) = 1."""
        share = 2 / self.num_experts  # the sigmoids sum to num_experts / 2
        adapted = self.repeated_state(state)
        adapted["weight"] = adapted["weight"] * share  # with one expert it is the state's own
        if "bias" in adapted and self.expert_bias:
            adapted["bias"] = adapted["bias"] * share
        if self.routing_fn is not None:
            adapted["routing_fn.weight"] = _opposed(self.routing_fn.weight)
            adapted["routing_fn.bias"] = _opposed(self.routing_fn.bias)
        return adapted

    def extra_repr(self) -> str:
        """``nn.Conv2d``'s description and the layer's own argument."""
        return f"{super().extra_repr()}, num_experts={self.num_experts}"


class _SharedRouting:
    """Carries a routing from the layer that computes it to those that share it.

    It is empty between forward passes, so that models can be copied and no graph is kept.

    Attributes:
        readers: How many layers take each routing.
    """

    def __init__(self) -> None:
        self.readers = 0
        self._routing: Tensor | None = None
        self._left = 0

    def put(self, routing: Tensor) -> None:
        """Leaves a routing for the readers."""
        self._routing, self._left = routing, self.readers

    def take(self) -> Tensor:
        """The routing, which the last reader removes."""
        if self._routing is None:
            raise RuntimeError(
                "CondConv2d shares the routing of another layer, which has to run before it in the "
                "same forward pass"
            )
        routing = self._routing
        self._left -= 1
        if self._left == 0:
            self._routing = None
        return routing


def _opposed(rows: Tensor) -> Tensor:
    """The first half of the rows, the negative of it, and zero for one that is left over."""
    half = rows[: len(rows) // 2]
    return torch.cat((half, -half, torch.zeros_like(rows[2 * len(half) :])))
