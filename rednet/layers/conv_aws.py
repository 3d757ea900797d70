"""Convolution with adaptive weight standardization."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rednet.errors import ArgumentError
from rednet.layers.base import ConvLayer
from rednet.layers.gradient_strides import keep_gradient_strides
from rednet.ops.dtypes import accumulation_dtype
from rednet.ops.geometry import IntOrPair
from rednet.registry import CONV_LAYERS

EPSILON = 1e-5


class StandardizedConv(ConvLayer):
    """Base of the layers whose kernel is standardized, then scaled and shifted by two buffers.

    It keeps ``weight``, ``weight_gamma`` and ``weight_beta``; a subclass initializes them.

    Raises:
        ArgumentError: If the kernel has one element per output channel, and so no variance.
    """

    weight_gamma: Tensor
    weight_beta: Tensor

    def __init__(self, *geometry: Any) -> None:
        super().__init__(*geometry)
        _, channels, height, width = self.plain_weight_shape
        if channels * height * width == 1:
            raise ArgumentError(
                f"{type(self).__name__} divides each kernel by its standard deviation, and one "
                f"number has none: kernel_size={self.kernel_size}, groups={self.groups} cannot be "
                "served"
            )
        self.weight = nn.Parameter(torch.empty(self.plain_weight_shape))
        self.register_buffer("weight_gamma", torch.empty(self.out_channels, 1, 1, 1))
        self.register_buffer("weight_beta", torch.empty(self.out_channels, 1, 1, 1))

    def init_weights(self) -> None:
        """``nn.Conv2d``'s initialization for the weight; no scale and no shift."""
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        nn.init.ones_(self.weight_gamma)
        nn.init.zeros_(self.weight_beta)

    def kernel(self) -> Tensor:
        """The standardized kernel, of the weight's shape."""
        return standardize(self.weight, self.weight_gamma, self.weight_beta)


@CONV_LAYERS.register_module()
class ConvAWS2d(StandardizedConv):
    """Convolution whose kernel is standardized, then scaled and shifted by two buffers.

    The kernel of each output channel is reduced by its mean and divided by its standard deviation,
    so that only its direction is learned. ``weight_gamma`` and ``weight_beta`` hold the scale and
    the mean of a pretrained kernel. They start at 1 and 0: without pretrained weights, put a norm
    after the layer.

    From `DetectoRS <https://arxiv.org/abs/2006.02334>`_. The state_dict has the keys of mmcv's
    ``ConvAWS``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Height and width of the kernel.
        stride: Step between output pixels.
        padding: Pixels added on both ends of each side, or ``'same'`` or ``'valid'``.
        dilation: Distance between kernel elements.
        groups: Blocks that the channels are split into.
        bias: Whether to add a bias of shape (out_channels,) to the output.
        padding_mode: ``'zeros'``, ``'reflect'``, ``'replicate'`` or ``'circular'``.

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
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode
        )
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels))
        else:
            self.register_parameter("bias", None)
        self.init_weights()
        keep_gradient_strides(self)

    def init_weights(self) -> None:
        """``nn.Conv2d``'s initialization for the weight and the bias; no scale and no shift."""
        super().init_weights()
        if self.bias is not None:
            bound = self.weight[0].numel() ** -0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def convolve_checked(self, input: Tensor) -> Tensor:
        """Computes the output, (N, out_channels, Ho, Wo)."""
        return self.convolve(input, self.kernel(), self.bias)

    def adapt_plain_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The layer computes what the convolution computed."""
        adapted = standardized_state(state["weight"])
        if self.bias is not None:
            adapted["bias"] = torch.zeros_like(self.bias)
        if "bias" in state:
            adapted["bias"] = state["bias"]
        return adapted

    @torch.no_grad()
    def switch_to_deploy(self) -> nn.Module:
        """The plain convolution that has the standardized kernel."""
        return self.plain_convolution(self.kernel(), self.bias)


def standardize(weight: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Standardizes each output channel's kernel, then scales and shifts it.

    The statistics of a 16-bit weight are taken in float32.

    Args:
        weight: (out_channels, in_channels / groups, Kh, Kw).
        gamma: (out_channels, 1, 1, 1).
        beta: (out_channels, 1, 1, 1).

    Returns:
        The kernel, of the weight's shape and dtype.
    """
    exact = _at_least_float32(weight)
    # layer_norm takes the biased variance, and is many times as fast as var and mean on a CPU.
    count = weight[0].numel()
    unbiased = (count - 1) / count
    kernel = F.layer_norm(exact, exact.shape[1:], eps=EPSILON * unbiased)
    # In place, because each pass through fresh memory costs as much as the arithmetic.
    return kernel.mul_(gamma.to(exact.dtype) * unbiased**0.5).add_(beta).to(weight.dtype)


def standardized_state(weight: Tensor) -> dict[str, Tensor]:
    """The weight, scale and shift from which ``standardize`` gives this weight back.

    The scale and the shift of a 16-bit weight are float32: the layer that takes them may be.
    """
    variance, mean = torch.var_mean(_at_least_float32(weight), dim=(1, 2, 3), keepdim=True)
    return {
        "weight": weight,
        "weight_gamma": torch.sqrt(variance + EPSILON),
        "weight_beta": mean,
    }


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(accumulation_dtype(tensor.dtype))
