"""Switchable atrous convolution."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
import torch.nn.functional as F
from mmengine.model import constant_init
from torch import Tensor, nn

from rednet.errors import MissingDependencyError
from rednet.layers.base import global_average, is_unmodified
from rednet.layers.conv_aws import StandardizedConv, standardized_state
from rednet.layers.gradient_strides import keep_gradient_strides
from rednet.layers.image_padding import pad_image
from rednet.ops.dtypes import accumulation_dtype
from rednet.ops.geometry import IntOrPair, Pair, ceil_div
from rednet.registry import CONV_LAYERS

SWITCH_RADIUS = 2
ATROUS_RATE = 3
# In torch 2.1 a mean keeps its operand for its gradient, so that this must not change any more.
_MEAN_KEEPS_OPERAND = hasattr(torch.ones(1, requires_grad=True).mean(0).grad_fn, "_saved_self")


@CONV_LAYERS.register_module()
class SAConv2d(StandardizedConv):
    """Switchable atrous convolution: one kernel at two dilations, mixed pixel by pixel.

    The standardized kernel runs over the input at the layer's dilation and, with ``weight_diff``
    added, at three times that dilation. A switch, computed from the 5 x 5 average of the input,
    weights the two at each output pixel. Before and after, a 1 x 1 convolution of the
    image's global average is added as context. A new layer, and one that has loaded a plain
    convolution's weights, computes its convolution at the layer's dilation only.

    From `DetectoRS <https://arxiv.org/abs/2006.02334>`_. The state_dict has the keys of mmcv's
    ``SAC``; the ``bias`` of its checkpoints, which no output uses, is dropped.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Height and width of the kernel.
        stride: Step between output pixels.
        padding: Pixels added on both ends of each side, or ``'same'`` or ``'valid'``. The kernel
            at three times the dilation gets as much more as keeps its center in place.
        dilation: Distance between kernel elements.
        groups: Blocks that the channels are split into.
        bias: Whether to add a bias without context. No effect with context, which has one.
        padding_mode: ``'zeros'``, ``'reflect'``, ``'replicate'`` or ``'circular'``.
        use_deform: Whether both convolutions are deformable. Needs mmcv with its operators, which
            cannot be exported, compiled in one graph or differentiated twice.
        use_context: Whether the averages of the image are added before and after.
        use_switch: Whether the two are weighted at each pixel. Otherwise one learned share serves
            all pixels.

    Shape:
        - Input: (N, in_channels, H, W)
        - Output: (N, out_channels, Ho, Wo), as ``nn.Conv2d`` gives for the same arguments.

    Raises:
        TypeError: If an argument has the wrong type.
        ArgumentError: If an argument has an unsupported value.
        MissingDependencyError: If ``use_deform`` is set and mmcv has no operators.
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
        use_deform: bool = False,
        use_context: bool = True,
        use_switch: bool = True,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode
        )
        own_bias = torch.empty(out_channels) if bias and not use_context else None
        self.bias = None if own_bias is None else nn.Parameter(own_bias)
        self.use_deform = use_deform
        self.use_context = use_context
        self.use_switch = use_switch
        self.deploy = False
        self.weight_diff = nn.Parameter(torch.empty_like(self.weight))
        if use_switch:
            self.switch = nn.Conv2d(in_channels, 1, 1, self.stride)
        else:
            self.share = nn.Parameter(torch.empty(()))
        if use_context:
            self.pre_context = nn.Conv2d(in_channels, in_channels, 1)
            self.post_context = nn.Conv2d(out_channels, out_channels, 1)
        if use_deform:
            _mmcv_ops()
            coordinates = 2 * self.kernel_size[0] * self.kernel_size[1]
            self.offset_s = nn.Conv2d(in_channels, coordinates, 3, self.stride, padding=1)
            self.offset_l = nn.Conv2d(in_channels, coordinates, 3, self.stride, padding=1)
        self.init_weights()
        keep_gradient_strides(self)

    def init_weights(self) -> None:
        """``nn.Conv2d``'s initialization for the weight; the rest starts without effect."""
        super().init_weights()
        nn.init.zeros_(self.weight_diff)
        for name in ("pre_context", "post_context", "offset_s", "offset_l"):
            if hasattr(self, name):
                constant_init(getattr(self, name), 0)
        if self.use_switch:
            constant_init(self.switch, 0, bias=1)
        else:
            nn.init.ones_(self.share)

    def adapt_plain_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The layer computes what the convolution computed."""
        adapted = {key: torch.zeros_like(value) for key, value in self.state_dict().items()}
        for key, value in standardized_state(state["weight"]).items():
            if key in adapted:
                adapted[key] = value
        share = "switch.bias" if self.use_switch else "share"
        adapted[share] = torch.ones_like(adapted[share])
        if "bias" in state:
            adapted["post_context.bias" if self.use_context else "bias"] = state["bias"]
        return adapted

    def kernel(self) -> Tensor:
        """The standardized kernel, the only one that a deployed layer keeps."""
        return self.weight if self.deploy else super().kernel()

    @torch.no_grad()
    def switch_to_deploy(self) -> nn.Module:
        """The layer itself, with the standardized kernel as its weight."""
        if not self.deploy:
            self.weight = nn.Parameter(self.kernel())
            del self.weight_gamma, self.weight_beta
            self.deploy = True
        return self

    def convolve_checked(self, input: Tensor) -> Tensor:
        """Computes the output, (N, out_channels, Ho, Wo)."""
        input = self._with_context(input)
        small = self.kernel()
        large = small + self.weight_diff
        if self.use_deform:
            average = self.center(_average_5x5(input))
            switch = self.switch(average) if self.use_switch else self.share
            near = self._deformed(input, self.offset_s(average), small, 1)
            far = self._deformed(input, self.offset_l(average), large, ATROUS_RATE)
        else:
            switch = self._switch(input)
            near = self._convolved(input, small, 1)
            far = self._convolved(input, large, ATROUS_RATE)
        # In place where nothing keeps the operand: fresh memory costs more than the arithmetic.
        output = (switch.to(near.dtype) * near.sub_(far)).add_(far)
        if not self.use_context:
            return (
                output if self.bias is None else output + self.bias.to(output.dtype)[:, None, None]
            )
        context = self.post_context(global_average(output))
        return output + context if _MEAN_KEEPS_OPERAND else output.add_(context)

    def switch_map(self, input: Tensor) -> Tensor:
        """Computes the switch of an input, as the forward pass does.

        Args:
            input: (N, in_channels, H, W).

        Returns:
            (N, 1, Ho, Wo): the share of the convolution at the layer's own dilation in each output
            pixel. The convolution at three times that dilation has the rest, 1 minus the share.
        """
        switch = self._switch(self._with_context(input))
        return switch.expand(len(input), 1, *self.output_size(input.shape[2], input.shape[3]))

    def _with_context(self, input: Tensor) -> Tensor:
        return input + self.pre_context(global_average(input)) if self.use_context else input

    def _switch(self, input: Tensor) -> Tensor:
        """The switch, (N, 1, Ho, Wo): averaged after the 1 x 1 convolution, over one channel.

        One number where a learned share takes its place.
        """
        if not self.use_switch:
            return self.share
        if not is_unmodified(self.switch, nn.Conv2d):
            return self.switch(self.center(_average_5x5(input)))
        # One channel is averaged six times faster if it does not count as channels_last.
        projected = F.conv2d(input, self.switch.weight).squeeze(1).unsqueeze(1)
        average = self.center(_average_5x5(projected))[..., :: self.stride[0], :: self.stride[1]]
        bias = self.switch.bias
        assert bias is not None  # get_parameter breaks torch 2.1's graph
        return average + bias.to(average.dtype)

    def _convolved(self, input: Tensor, kernel: Tensor, rate: int) -> Tensor:
        padded, padding = self._pad_at(rate, input)
        return F.conv2d(
            padded, kernel, None, self.stride, padding, self._dilation_at(rate), self.groups
        )

    def _deformed(self, input: Tensor, offset: Tensor, kernel: Tensor, rate: int) -> Tensor:
        padded, padding = self._pad_at(rate, input)
        return _deform_conv2d(
            padded, offset, kernel, self.stride, padding, self._dilation_at(rate), self.groups
        )

    def _dilation_at(self, rate: int) -> Pair:
        return rate * self.dilation[0], rate * self.dilation[1]

    def _pad_at(self, rate: int, input: Tensor) -> tuple[Tensor, Pair]:
        """Pads so that the kernel at ``rate`` times the dilation keeps its center.

        With the usual padding of d (K - 1) / 2 this is ``rate`` times the padding.

        Returns:
            The padded input and the zero padding that is left to the kernel.
        """
        extra = [
            (rate - 1) * self.dilation[side] * (self.kernel_size[side] - 1) // 2 for side in (0, 1)
        ]
        before = (self.padding_before[0] + extra[0], self.padding_before[1] + extra[1])
        after = (self.padding_after[0] + extra[0], self.padding_after[1] + extra[1])
        if self.padding_mode == "zeros" and before == after:
            return input, before
        return pad_image(input, before, after, self.padding_mode), (0, 0)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: object, **kwargs: object
    ) -> None:
        if prefix + "weight_diff" in state_dict and self.bias is None:
            state_dict.pop(prefix + "bias", None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _average_5x5(image: Tensor) -> Tensor:
    """The average around each pixel, of a map that is reflected at its borders."""
    border = (SWITCH_RADIUS, SWITCH_RADIUS)
    return F.avg_pool2d(pad_image(image, border, border, "reflect"), 2 * SWITCH_RADIUS + 1, 1)


def _mmcv_ops() -> ModuleType:
    try:
        import mmcv.ops
    except ImportError as error:
        raise MissingDependencyError(
            "use_deform=True needs the operators of mmcv, which torchvision serves: "
            "pip install torchvision"
        ) from error
    return mmcv.ops


def _deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """Deformable convolution by mmcv, for every floating dtype, image size and batch size.

    Args:
        input: (N, C, H, W).
        offset: (N, 2 * Kh * Kw, Ho, Wo), which also gives the output's dtype.
        weight: (out_channels, C / groups, Kh, Kw).
        stride: As of a convolution; so are the arguments that follow.
        padding: Zeros added on both ends of each side.
        dilation: Distance between kernel elements.
        groups: Blocks that the channels are split into.

    Returns:
        (N, out_channels, Ho, Wo).

    Raises:
        RuntimeError: If an ONNX graph is being recorded.
    """
    if torch.onnx.is_in_onnx_export():
        # mmcv would put an operator of its own into the graph, which no runtime has.
        raise RuntimeError("SAConv2d with use_deform=True cannot be exported to ONNX")
    if len(input) == 0:
        return F.conv2d(input, weight, None, stride, padding, dilation, groups)
    dtype = accumulation_dtype(offset.dtype)
    height, width = offset.shape[2:]
    input, grown = _at_least(input, weight.shape[2:], stride)
    with torch.autocast(input.device.type, enabled=False):
        output = _mmcv_ops().deform_conv2d(
            input.to(dtype).contiguous(),
            F.pad(offset.to(dtype), (0, grown[1], 0, grown[0])),
            weight.to(dtype).contiguous(),
            stride,
            padding,
            dilation,
            groups,
            1,
            False,
            _step(len(input)),
        )
    return output[..., :height, :width].to(offset.dtype)


def _at_least(input: Tensor, size: Sequence[int], stride: Pair) -> tuple[Tensor, Pair]:
    """Adds zeros below and on the right of an image that is smaller than the kernel.

    mmcv refuses such an image. It reads zeros there anyway, so the output only grows.

    Returns:
        The image and how much the output's height and width grow.
    """
    missing = [max(0, size[side] - input.shape[2 + side]) for side in (0, 1)]
    missing = [ceil_div(amount, step) * step for amount, step in zip(missing, stride, strict=True)]
    if any(missing):
        input = F.pad(input, (0, missing[1], 0, missing[0]))
    return input, (missing[0] // stride[0], missing[1] // stride[1])


def _step(batch: int) -> int:
    """How many images mmcv takes at a time: the largest divisor of the batch up to 32."""
    return max(step for step in range(1, min(batch, 32) + 1) if batch % step == 0)
