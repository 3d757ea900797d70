"""Omni-dimensional dynamic convolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import get_world_size
from mmengine.model import constant_init, kaiming_init
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rednet.arguments import positive_int, positive_number
from rednet.errors import ArgumentError
from rednet.layers.base import pointwise
from rednet.layers.gradient_strides import keep_gradient_strides
from rednet.layers.mixture import MixtureConvLayer
from rednet.ops.expert_conv import Factors
from rednet.ops.geometry import IntOrPair
from rednet.registry import CONV_LAYERS

ATTENTIONS = ("channel", "filter", "spatial", "kernel")


@CONV_LAYERS.register_module()
class ODConv2d(MixtureConvLayer):
    """Convolution with attention along all four dimensions of its kernels.

    From the image's global average, a small network with four heads computes a factor for each
    input channel, for each output channel (filter), for each position of the kernel, and, by a
    softmax, the shares of ``kernel_num`` kernels in the one that is used. The first three are
    sigmoids. All logits are divided by a temperature before; ``TemperatureAnnealHook`` lowers it
    during training. A head without anything to choose between is left out: the filters' for a
    depthwise convolution, the positions' for a 1 x 1 kernel, the kernels' for one kernel.

    From `Omni-Dimensional Dynamic Convolution <https://arxiv.org/abs/2209.07947>`_. The state_dict
    has the published keys, and ``temperature``, which is 1 where a checkpoint lacks it. The
    published layer has no bias: ``bias=True`` adds one to the output, after all attention, and
    reads it as zero from a checkpoint that lacks it.

    In training, the attention's batch norm needs the statistics of a batch. A single image has
    none: a batch of one is normalized by the running statistics and does not change them.
    ``nn.SyncBatchNorm`` in its place (``sync_bn='torch'`` in a config) takes the batch over all
    processes.

    A plain convolution's checkpoint loads, and the layer then computes what the convolution
    computed, at every temperature: the sigmoids' heads start at zero, so that each factor is 1/2,
    which the kernels make up for.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Height and width of the kernels.
        stride: Step between output pixels.
        padding: Pixels added on both ends of each side, or ``'same'`` or ``'valid'``.
        dilation: Distance between kernel elements.
        groups: Blocks that the channels are split into.
        bias: Whether to add a bias of shape (out_channels,) to the output.
        padding_mode: ``'zeros'``, ``'reflect'``, ``'replicate'`` or ``'circular'``.
        kernel_num: Number of kernels.
        reduction: The attention's width over ``in_channels``, rounded down.
        min_channels: Least width of the attention.
        attentions: The attentions to build, of ``'channel'``, ``'filter'``, ``'spatial'`` and
            ``'kernel'``. With ``'filter'`` only and one kernel, the layer is a convolution with
            squeeze-and-excitation on its output channels.
        static: Whether the attentions are learned numbers, the same for all images, instead of
            computed from each.

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
        kernel_num: int = 4,
        reduction: float = 1 / 16,
        min_channels: int = 16,
        attentions: Sequence[str] = ATTENTIONS,
        static: bool = False,
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
            experts=positive_int("kernel_num", kernel_num),
        )
        self.kernel_num = kernel_num
        self.reduction = positive_number("reduction", reduction)
        self.min_channels = positive_int("min_channels", min_channels)
        self.attentions = _checked_attentions(attentions, kernel_num)
        self.static = static
        hidden = 0 if static else max(int(in_channels * reduction), min_channels)
        self.attention = _Attention(in_channels, hidden, self._head_widths())
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels))
        else:
            self.register_parameter("bias", None)
        self.init_weights()
        keep_gradient_strides(self)

    def _head_widths(self) -> dict[str, int]:
        """The widths of the attention's heads. One without anything to choose between has none."""
        taps = self.kernel_size[0] * self.kernel_size[1]
        is_depthwise = self.in_channels == self.out_channels == self.groups
        widths = dict(
            channel=self.in_channels,
            filter=0 if is_depthwise else self.out_channels,
            spatial=0 if taps == 1 else taps,
            kernel=0 if self.kernel_num == 1 else self.kernel_num,
        )
        return {name: widths[name] if name in self.attentions else 0 for name in ATTENTIONS}

    @torch.no_grad()
    def init_weights(self) -> None:
        """Kaiming initialization, each kernel on its own; zero for the bias."""
        for kernel in self.weight:
            nn.init.kaiming_normal_(kernel, mode="fan_out", nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self.attention.init_weights()

    def convolve_checked(self, input: Tensor) -> Tensor:
        """Computes the output, (N, out_channels, Ho, Wo)."""
        factors, routing = self.attention(input, self.temperature)
        if factors.taps is None and routing is None:
            return self._convolve_alike(input, factors)
        if routing is None:
            routing = input.new_ones(input.shape[0], 1)
        bias = None if self.bias is None else self.bias.expand(input.shape[0], -1)
        return self.convolve_mixed(input, routing, bias, factors)

    def _convolve_alike(self, input: Tensor, factors: Factors) -> Tensor:
        """One kernel for all images: its factors are the images'."""
        if factors.channels is not None:
            input = input * factors.channels[:, :, None, None]
        output = self.convolve(input, self.weight[0])
        if factors.filters is not None:
            output = output * factors.filters[:, :, None, None]
        if self.bias is not None:
            output = output + self.bias.to(output.dtype)[:, None, None]
        return output

    def adapt_plain_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every sigmoid is 1/2, and every kernel is the convolution's times 2 for each of them."""
        sigmoids = self.attention.sigmoid_heads()
        weight = state["weight"] * 2 ** len(sigmoids)
        adapted = self.repeated_state({**state, "weight": weight})
        for name, head in sigmoids.items():
            for key, value in head.state_dict().items():
                adapted[f"attention.{name}.{key}"] = torch.zeros_like(value)
        return adapted

    def unpublished_state(self) -> dict[str, Tensor]:
        """The temperature, and no bias."""
        state = super().unpublished_state()
        if self.bias is not None:
            state["bias"] = self.bias.new_zeros(self.out_channels)
        return state

    def extra_repr(self) -> str:
        """``nn.Conv2d``'s description and the layer's own arguments."""
        own = ("kernel_num", "reduction", "min_channels")
        return ", ".join([super().extra_repr(), *(f"{each}={getattr(self, each)}" for each in own)])


def _checked_attentions(attentions: Sequence[str], kernel_num: int) -> tuple[str, ...]:
    if not attentions or isinstance(attentions, str) or not set(attentions) <= set(ATTENTIONS):
        raise ArgumentError(f"attentions must be one or more of {ATTENTIONS}, got {attentions!r}")
    if "kernel" not in attentions and kernel_num > 1:
        raise ArgumentError(
            f"kernel_num must be 1 without the attention 'kernel', which mixes kernels, "
            f"got {kernel_num}"
        )
    return tuple(name for name in ATTENTIONS if name in attentions)


class _LearnedLogits(nn.Module):
    """A head that gives the same logits for all images."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(width))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.logits.expand(len(hidden), -1)


def _head(hidden: int, width: int) -> nn.Module:
    return nn.Conv2d(hidden, width, 1) if hidden else _LearnedLogits(width)


class _Attention(nn.Module):
    """The network with four heads. A head of width 0 is left out.

    Without hidden channels, the heads are learned numbers.
    """

    def __init__(self, channels: int, hidden: int, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.is_static = not hidden
        if hidden:
            self.fc = nn.Conv2d(channels, hidden, 1, bias=False)
            self.bn = nn.BatchNorm2d(hidden)
        for name, width in widths.items():
            setattr(self, f"{name}_fc", _head(hidden, width) if width else None)

    def init_weights(self) -> None:
        for module in self.children():
            if isinstance(module, nn.Conv2d):
                kaiming_init(module)
            elif isinstance(module, _LearnedLogits):
                nn.init.zeros_(module.logits)
            else:
                constant_init(module, 1)

    def sigmoid_heads(self) -> dict[str, nn.Module]:
        """The heads whose logits a sigmoid squashes, by name."""
        heads = {name: getattr(self, name) for name in ("channel_fc", "filter_fc", "spatial_fc")}
        return {name: head for name, head in heads.items() if head is not None}

    def forward(self, input: Tensor, temperature: Tensor) -> tuple[Factors, Tensor | None]:
        """Computes the factors, and the kernels' shares (N, kernels), for (N, channels, H, W)."""
        if self.is_static:
            hidden = input
        else:
            squeezed = pointwise(self.fc, input.mean((2, 3)))
            hidden = F.relu(self._normalize(squeezed[:, :, None, None])).flatten(1)

        def logits(head: Any) -> Tensor:
            return (head(hidden) if self.is_static else pointwise(head, hidden)) / temperature

        channels, filters = self.channel_fc, self.filter_fc
        taps, kernels = self.spatial_fc, self.kernel_fc
        factors = Factors(
            channels=None if channels is None else logits(channels).sigmoid(),
            filters=None if filters is None else logits(filters).sigmoid(),
            taps=None if taps is None else logits(taps).sigmoid(),
        )
        return factors, None if kernels is None else logits(kernels).softmax(1)

    def _normalize(self, hidden: Tensor) -> Tensor:
        bn = self.bn
        if self.training and len(hidden) == 1 and isinstance(bn, _BatchNorm) and _is_alone(bn):
            # One value per channel has no variance: see the layer's documentation.
            return F.batch_norm(
                hidden, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps
            )
        return bn(hidden)


def _is_alone(norm: _BatchNorm) -> bool:
    """Whether a norm sees the images of this process only."""
    return not isinstance(norm, nn.SyncBatchNorm) or get_world_size(norm.process_group) == 1
