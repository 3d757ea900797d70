"""The base of the layers whose kernel is mixed, for each image, from several experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rednet.arguments import positive_number
from rednet.layers.base import ConvLayer
from rednet.ops.expert_conv import Factors, Window, expert_conv2d
from rednet.ops.geometry import IntOrPair


class MixtureConvLayer(ConvLayer):
    """Base of the layers that mix their kernel from experts, by attention to the input.

    It keeps the experts, and the temperature by which the attention's logits are divided before
    they are squashed: the higher it is, the more alike the experts' shares of the kernel.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Height and width of the kernel.
        stride: Step between output pixels.
        padding: Pixels added on both ends of each side, or ``'same'`` or ``'valid'``.
        dilation: Distance between kernel elements.
        groups: Blocks that the channels are split into.
        padding_mode: ``'zeros'``, ``'reflect'``, ``'replicate'`` or ``'circular'``.
        experts: Number of kernels to mix.

    Raises:
        TypeError: If an argument has the wrong type.
        ArgumentError: If an argument has a value that ``nn.Conv2d`` does not accept.
    """

    bias: nn.Parameter | None
    temperature: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrPair,
        stride: IntOrPair,
        padding: str | IntOrPair,
        dilation: IntOrPair,
        groups: int,
        padding_mode: str,
        experts: int,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode
        )
        self.weight = nn.Parameter(torch.empty(experts, *self.plain_weight_shape))
        self.register_buffer("temperature", torch.ones(()))

    def set_temperature(self, temperature: float) -> None:
        """Sets the temperature; ``TemperatureAnnealHook`` does so during training.

        Raises:
            TypeError: If it is not a number.
            ArgumentError: If it is not finite and above 0.
        """
        self.temperature.fill_(positive_number("temperature", temperature))

    def convolve_mixed(
        self,
        input: Tensor,
        routing: Tensor,
        bias: Tensor | None = None,
        factors: Factors = Factors(),  # noqa: B008  (immutable)
    ) -> Tensor:
        """Convolves each image with its mixture of the experts, (N, K), padding mode included."""
        padded, padding = self.pad(input)
        window = Window(self.stride, padding, self.dilation, self.groups)
        return expert_conv2d(padded, self.weight, routing, bias, factors, window)

    def repeated_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A plain convolution's weight for every expert, and its bias in the shape of this layer's.

        Each is memory of its own, which ``load_state_dict(..., assign=True)`` makes the parameter.
        """
        repeated = {"weight": state["weight"].expand_as(self.weight).contiguous()}
        if self.bias is not None:
            bias = state.get("bias", state["weight"].new_zeros(self.out_channels))
            repeated["bias"] = bias.expand_as(self.bias).contiguous()
        elif "bias" in state:  # without a place: a strict load refuses it
            repeated["bias"] = state["bias"]
        return repeated

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MixtureConvLayer:
        """Lets ``to(memory_format=torch.channels_last)`` pass.

        PyTorch asks it of tensors of four and five dimensions alike and refuses those of five. It
        is for the experts without effect: they stay contiguous.
        """

        def apply(tensor: Tensor) -> Tensor:
            if tensor.dim() != 5:
                return fn(tensor)
            return fn(tensor.flatten(0, 1)).contiguous().unflatten(0, tensor.shape[:2])

        return super()._apply(apply, recurse)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        weight = state_dict.get(prefix + "weight")
        if weight is not None and weight.dim() == self.weight.dim():
            for key, value in self.unpublished_state().items():
                state_dict.setdefault(prefix + key, value)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def unpublished_state(self) -> dict[str, Tensor]:
        """What a published checkpoint implies without containing it."""
        return {"temperature": torch.ones(())}
