"""Involution as a convolution layer: it generates its kernels from its input."""

from __future__ import annotations

from math import isqrt

import torch
from mmcv.cnn import ConvModule
from mmengine.model import initialize, kaiming_init
from torch import Tensor, nn

from rednet.arguments import positive_int
from rednet.errors import ArgumentError
from rednet.layers.base import ConvLayer, is_unmodified
from rednet.layers.finishing import finish_module, may_finish
from rednet.layers.gradient_strides import keep_gradient_strides
from rednet.layers.recomputing import consume_module
from rednet.ops import involution2d
from rednet.ops.backends import is_generating
from rednet.ops.checks import is_plain
from rednet.ops.generating import generating_involution2d
from rednet.ops.geometry import IntOrPair
from rednet.ops.tracing import is_checkpointed, is_compiling, is_only_compiled, is_recorded
from rednet.registry import CONV_LAYERS

# The published ones.
GROUP_CHANNELS = 16
REDUCTION_RATIO = 4


@CONV_LAYERS.register_module()
class Involution2d(ConvLayer):
    """Involution with ``nn.Conv2d``'s constructor and output shape.

    At every output pixel, a bottleneck of two 1 x 1 convolutions generates one K x K kernel for
    each group of ``group_channels`` channels. If ``in_channels != out_channels``, a 1 x 1
    convolution maps the input to ``out_channels`` first, because involution does not mix channels.

    From `Involution: Inverting the Inherence of Convolution for Visual Recognition
    <https://arxiv.org/abs/2103.06255>`_. The state_dict has the published keys.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, a multiple of ``group_channels``.
        kernel_size: Height and width of the generated kernels.
        stride: Step between output pixels. With a stride, the kernels are generated from the
            average of the ``stride`` x ``stride`` pixels at the window's center.
        padding: Pixels added on both ends of each side, or ``'same'`` or ``'valid'``.
        dilation: Distance between kernel elements.
        groups: Groups of the 1 x 1 convolution from ``in_channels`` to ``out_channels``; no effect
            if they are equal.
        bias: Whether to add a bias of shape (out_channels,) to the output.
        padding_mode: ``'zeros'``, ``'reflect'``, ``'replicate'`` or ``'circular'``.
        group_channels: Channels that share a kernel.
        reduction_ratio: ``out_channels`` divided by the width of the bottleneck.
        norm_cfg: Config of the bottleneck's normalization.
        init_cfg: Config of mmengine's initialization of the convolutions, such as
            ``dict(type='Xavier', distribution='uniform')``; None for Kaiming.
        regenerate_weight: Whether the backward pass generates the kernels again, so that training
            does not keep them: they have ``K * K / group_channels`` times the size of the output.
            They are kept nevertheless where a graph is traced, under torch.func, inside a
            checkpoint, and where ``conv2``, which generates them, was replaced or has hooks.

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
        group_channels: int = GROUP_CHANNELS,
        reduction_ratio: int = REDUCTION_RATIO,
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
        regenerate_weight: bool = True,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode
        )
        self.group_channels = positive_int("group_channels", group_channels)
        self.reduction_ratio = positive_int("reduction_ratio", reduction_ratio)
        self.init_cfg = init_cfg
        self.regenerate_weight = regenerate_weight
        if out_channels % group_channels:
            raise ArgumentError(
                f"out_channels must be a multiple of group_channels={group_channels}, "
                f"got {out_channels}"
            )
        if out_channels < reduction_ratio:
            raise ArgumentError(
                f"out_channels must be at least reduction_ratio={reduction_ratio}, "
                f"got {out_channels}"
            )
        if in_channels != out_channels:
            self.projection = nn.Conv2d(in_channels, out_channels, 1, groups=groups, bias=False)
        hidden = out_channels // reduction_ratio
        taps = self.kernel_size[0] * self.kernel_size[1]
        self.conv1 = ConvModule(
            out_channels,
            hidden,
            1,
            norm_cfg=norm_cfg or dict(type="BN"),
            act_cfg=dict(type="ReLU"),
            inplace=False,  # a full backward hook on the norm makes its output a view
        )
        self.conv2 = ConvModule(
            hidden, taps * (out_channels // group_channels), 1, norm_cfg=None, act_cfg=None
        )
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels))
        else:
            self.register_parameter("bias", None)
        self.init_weights()
        keep_gradient_strides(self)

    def init_weights(self) -> None:
        """The initialization of ``init_cfg`` for the convolutions, zero for the bias."""
        self.conv1.init_weights()
        self.conv2.init_weights()
        if self.in_channels != self.out_channels:
            kaiming_init(self.projection)
        if self.init_cfg is not None:
            initialize(self, {"layer": "Conv2d", **self.init_cfg})
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def convolve_checked(self, input: Tensor) -> Tensor:
        """Computes the output, (N, out_channels, Ho, Wo)."""
        if self.in_channels != self.out_channels:
            input = self.projection(input)
        output = self._involve(input)
        if self.bias is None:
            return output
        # Under autocast the output is 16 bits wide and the bias is not: a sum would be promoted.
        return output + self.bias.view(1, -1, 1, 1).to(output.dtype)

    def _involve(self, input: Tensor) -> Tensor:
        """Generates the kernels, (N, G, Kh, Kw, Ho, Wo), from the input, and applies them to it."""
        centers = self.window_centers(input)
        if may_finish(centers):
            return self._generate_and_apply(input, finish_module(self.conv1, centers))
        # Not a partial, which torch 2.1 cannot compile.
        return consume_module(
            self.conv1, centers, lambda reduced: self._generate_and_apply(input, reduced)
        )

    def _generate_and_apply(self, input: Tensor, reduced: Tensor) -> Tensor:
        padded, padding = self.pad(input)
        window = (self.stride, padding, self.dilation)
        if self._generates_where_it_applies(padded, reduced):
            matrix, bias = self.conv2.conv.weight.flatten(1), self.conv2.conv.bias
            return generating_involution2d(padded, reduced, matrix, bias, self.kernel_size, *window)
        kernels = self.conv2(reduced)
        groups = self.out_channels // self.group_channels
        shape = (kernels.shape[0], groups, *self.kernel_size, *kernels.shape[2:])
        return involution2d(padded, kernels.reshape(shape), *window)

    def _may_generate(self) -> bool:
        """Whether nobody may follow the operators, and there is something to gain."""
        if torch.is_grad_enabled():
            return self.regenerate_weight and not (is_recorded() or is_checkpointed())
        return (is_only_compiled() or not is_recorded()) and is_generating()

    def _generates_where_it_applies(self, padded: Tensor, reduced: Tensor) -> bool:
        """Whether conv2 and the operator may be one: nothing asks for what lies between them."""
        conv2 = self.conv2
        return (
            self._may_generate()
            and is_unmodified(conv2, ConvModule)
            and not (conv2.with_norm or conv2.with_activation)
            and is_unmodified(conv2.conv, nn.Conv2d)
            and conv2.conv.weight.shape[1:] == (reduced.shape[1], 1, 1)
            and all(map(is_plain, (padded, reduced, conv2.conv.weight)))
            # On a GPU the compiler writes kernels of its own for what lies between.
            and (padded.device.type == "cpu" or not is_compiling())
        )


def generated_kernel_size(name: str, weight: Tensor, groups: int) -> int:
    """Reads the kernel size off the tensor that generates an involution's kernels.

    Args:
        name: The tensor's name, for the error message.
        weight: ``conv2.conv.weight``, (K * K * groups, hidden, 1, 1).
        groups: Groups of channels that share a kernel.

    Returns:
        K.

    Raises:
        ArgumentError: If no square kernel of odd size has so many elements.
    """
    rows = len(weight) if weight.dim() == 4 else 0
    size = isqrt(rows // groups) if groups else 0
    if size % 2 == 0 or size * size * groups != rows:
        raise ArgumentError(
            f"{name} must have K * K * {groups} rows for an odd square kernel, "
            f"got shape {tuple(weight.shape)}"
        )
    return size
