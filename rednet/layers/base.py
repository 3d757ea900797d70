"""The base of all convolution layers: ``nn.Conv2d``'s arguments, attributes and geometry."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.conv2d_adaptive_padding import Conv2dAdaptivePadding
from torch import Tensor, fx, nn

from rednet.arguments import positive_int
from rednet.errors import ArgumentError
from rednet.layers.plain_loading import PlainLoading
from rednet.ops.geometry import Geometry, IntOrPair, Pair, pair
from rednet.ops.tracing import has_global_hooks, is_compiling, is_only_compiled
from rednet.registry import CONV_LAYERS

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class ConvLayer(PlainLoading):
    """Base of the layers that stand in for ``nn.Conv2d``.

    It checks and keeps ``nn.Conv2d``'s arguments under ``nn.Conv2d``'s attribute names. A subclass
    adds its parameters, ``convolve_checked`` and ``init_weights``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Height and width of the kernel.
        stride: Step between output pixels.
        padding: Pixels added on both ends of each side, or ``'same'`` or ``'valid'``, or
            ``'adaptive'``: zeros by the size of the input, so that the output has ceil(H / stride)
            rows, as in mmcv's ``Conv2dAdaptivePadding`` and TensorFlow.
        dilation: Distance between kernel elements.
        groups: Blocks that the channels are split into.
        padding_mode: ``'zeros'``, ``'reflect'``, ``'replicate'`` or ``'circular'``.

    Raises:
        TypeError: If an argument has the wrong type.
        ArgumentError: If an argument has a value that cannot be used.
    """

    transposed = False
    output_padding = (0, 0)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrPair,
        stride: IntOrPair = 1,
        padding: str | IntOrPair = 0,
        dilation: IntOrPair = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        self.in_channels = positive_int("in_channels", in_channels)
        self.out_channels = positive_int("out_channels", out_channels)
        self.groups = positive_int("groups", groups)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ArgumentError(f"{name} must be a multiple of groups={groups}, got {channels}")
        if padding_mode not in _PADDING_MODES:
            raise ArgumentError(
                f"padding_mode must be one of {_PADDING_MODES}, got {padding_mode!r}"
            )
        self.padding_mode = padding_mode
        self.kernel_size = pair("kernel_size", kernel_size, minimum=1)
        self.stride = pair("stride", stride, minimum=1)
        self.dilation = pair("dilation", dilation, minimum=1)
        self.padding = self._checked_padding(padding)

    def _checked_padding(self, padding: str | IntOrPair) -> str | Pair:
        if not isinstance(padding, str):
            return pair("padding", padding, minimum=0)
        if padding not in ("same", "valid", "adaptive"):
            raise ArgumentError(
                f"padding must be ints, 'same', 'valid' or 'adaptive', got {padding!r}"
            )
        if padding == "adaptive" and self.padding_mode != "zeros":
            raise ArgumentError(
                f"padding='adaptive' adds zeros, got padding_mode={self.padding_mode!r}"
            )
        if padding == "same" and self.stride != (1, 1):
            raise ArgumentError(f"padding='same' needs stride 1, got stride={self.stride}")
        return padding

    def init_weights(self) -> None:
        """Sets the parameters to their initial values; mmengine and mmcv call it."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, out_channels, Ho, Wo), as ``nn.Conv2d`` does.

        While torch.fx traces, the layer is one node of the graph, as PyTorch's own layers are: how
        it computes depends on shapes that a trace does not have.

        Raises:
            ValueError: If the input is not (N, in_channels, H, W) or is smaller than the kernel.
        """
        if isinstance(input, fx.Proxy):
            return self._traced(input)
        if self.padding == "adaptive":
            input = self._pad_adaptively(input)
        self.check_input(input)
        return self.convolve_checked(input)

    def _traced(self, input: fx.Proxy) -> Any:
        """The layer as one node of a graph."""
        for child in self.modules():
            if child is not self:
                # Quantization in the graph stops at a node, but would replace the convolutions in
                # it by others that its conversion does not finish: they stay as they are.
                vars(child).setdefault("qconfig", None)
        # A layer that is traced by itself has no name in the traced module.
        tracer: Any = input.tracer
        path = tracer.path_of_module(self) or "itself"
        return tracer.create_proxy("call_module", path, (input,), {})

    @property
    def itself(self) -> ConvLayer:
        """The layer, by a name: a graph calls its modules by their names."""
        return self

    def convolve_checked(self, input: Tensor) -> Tensor:
        """Computes the output for an input that :meth:`check_input` accepts."""
        raise NotImplementedError

    def _pad_adaptively(self, input: Tensor) -> Tensor:
        """Adds the zeros with which the output has ceil(H / stride) rows, and columns likewise."""
        before, after = [], []
        for side in (0, 1):
            length, stride = input.shape[2 + side], self.stride[side]
            last_start = (length + stride - 1) // stride * stride - stride
            missing = max(last_start + self._same_padding(side) + 1 - length, 0)
            before.append(missing // 2)
            after.append(missing - missing // 2)
        return F.pad(input, (before[1], after[1], before[0], after[0]))

    @property
    def padding_before(self) -> Pair:
        """Pixels added above and on the left."""
        if self.padding == "same":
            return self._same_padding(0) // 2, self._same_padding(1) // 2
        return self._int_padding

    @property
    def padding_after(self) -> Pair:
        """Pixels added below and on the right; ``'same'`` of an even kernel adds one more here."""
        if self.padding == "same":
            return (self._same_padding(0) + 1) // 2, (self._same_padding(1) + 1) // 2
        return self._int_padding

    @property
    def _int_padding(self) -> Pair:
        return (0, 0) if isinstance(self.padding, str) else self.padding

    def _same_padding(self, side: int) -> int:
        return self.dilation[side] * (self.kernel_size[side] - 1)

    def pad(self, input: Tensor) -> tuple[Tensor, Pair]:
        """Adds the padding that a kernel cannot add by itself.

        Returns:
            The input, padded where the padding is not made of zeros or not symmetric, and the zero
            padding that is left to the kernel.
        """
        if self.padding_mode == "zeros" and not isinstance(self.padding, str):
            return input, self.padding
        before, after = self.padding_before, self.padding_after
        if self.padding_mode == "zeros" and before == after:
            return input, before
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return F.pad(input, (before[1], after[1], before[0], after[0]), mode=mode), (0, 0)

    @property
    def kernel_padding(self) -> Pair:
        """The zeros that a kernel adds on both ends of each side; :meth:`pad` adds the rest."""
        before = self.padding_before
        is_symmetric = before == self.padding_after
        return before if self.padding_mode == "zeros" and is_symmetric else (0, 0)

    def output_size(self, height: int, width: int) -> Pair:
        """The height and width of the output for an input of this size."""
        before, after = self.padding_before, self.padding_after
        window = Geometry(self.kernel_size, self.stride, (0, 0), self.dilation)
        return window.output_size(height + before[0] + after[0], width + before[1] + after[1])

    def check_input(self, input: Tensor) -> None:
        """Refuses an input that this layer cannot take.

        Raises:
            ValueError: If the input is not (N, in_channels, H, W) or is smaller than the kernel.
        """
        shape = input.shape
        if len(shape) != 4 or shape[1] != self.in_channels:
            raise ValueError(
                f"input must have shape (N, {self.in_channels}, H, W), got {tuple(shape)}"
            )
        if not (self._holds_window(0, shape[2]) and self._holds_window(1, shape[3])):
            raise ValueError(
                f"input of {shape[2]} x {shape[3]} is too small for "
                f"kernel_size={self.kernel_size}, padding={self.padding!r}, "
                f"dilation={self.dilation}"
            )

    def _holds_window(self, side: int, length: int) -> bool:
        if self.padding == "same":
            return length > 0
        padding = 0 if isinstance(self.padding, str) else self.padding[side]
        return length + 2 * padding > self._same_padding(side)

    def window_centers(self, input: Tensor) -> Tensor:
        """The input at the center of each window, (N, C, Ho, Wo), averaged over the stride."""
        centered = self.center(input)
        if self.stride == (1, 1):
            return centered
        # ceil_mode: an odd side ends with a window that is partly outside, like a convolution's.
        # Without count_include_pad, which makes no difference here but in older ONNX Runtimes.
        return F.avg_pool2d(
            centered, self.stride, self.stride, ceil_mode=True, count_include_pad=False
        )

    def center(self, input: Tensor) -> Tensor:
        """Shifts the input so that pixel (i, j) times the stride is the center of window (i, j).

        With the usual padding of d (K - 1) / 2 the first window's center is the first pixel. With
        another padding it lies elsewhere: the input is shifted, and reads as zero where a center
        lies outside of it.

        Returns:
            (N, C, H', W') with ceil(H' / stride) equal to the output's height; so for the width.
        """
        size = self.output_size(input.shape[2], input.shape[3])
        top, bottom = self._center_padding(0, input.shape[2], size[0])
        left, right = self._center_padding(1, input.shape[3], size[1])
        if any((top, bottom, left, right)):
            return F.pad(input, (left, right, top, bottom))
        return input

    def _center_padding(self, side: int, length: int, output_length: int) -> Pair:
        """How much to pad (if negative: to crop) before and after."""
        radius = self.dilation[side] * (self.kernel_size[side] - 1) // 2
        before = self.padding_before[side] - radius
        if before == 0 and self.padding_after[side] == self._same_padding(side) - radius:
            return 0, 0  # whatever the length, which an exported graph may leave free
        shifted = length + before
        last_start = (output_length - 1) * self.stride[side]
        if shifted <= last_start:
            return before, last_start + 1 - shifted
        return before, min(last_start + self.stride[side] - shifted, 0)

    def convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The convolution of this layer's geometry, padding mode included."""
        padded, padding = self.pad(input)
        return F.conv2d(padded, weight, bias, self.stride, padding, self.dilation, self.groups)

    @property
    def plain_weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight of the ``nn.Conv2d`` that this layer stands in for."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def plain_convolution(
        self, weight: Tensor, bias: Tensor | None = None, *, is_padded: bool = False
    ) -> nn.Conv2d:
        """The ``nn.Conv2d`` of this layer's geometry with these weights.

        Args:
            weight: Shape (out_channels, in_channels / groups, Kh, Kw).
            bias: Shape (out_channels,).
            is_padded: Whether the convolution gets input that is adaptively padded already.
        """
        is_adaptive = self.padding == "adaptive"
        geometry: dict[str, Any] = dict(
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            kernel_size=self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
            groups=self.groups,
            bias=bias is not None,
        )
        with torch.device("meta"):  # its own weights are never used
            if is_adaptive and not is_padded:
                convolution = Conv2dAdaptivePadding(**geometry)
            else:
                geometry["padding"] = 0 if is_adaptive else self.padding
                geometry["padding_mode"] = self.padding_mode
                convolution = nn.Conv2d(**geometry)
        convolution.weight = nn.Parameter(weight.detach().clone())
        if bias is not None:
            convolution.bias = nn.Parameter(bias.detach().clone())
        return convolution.train(self.training)

    def switch_to_deploy(self) -> nn.Module:
        """Merges what is constant after training. From then on, the layer is for inference only.

        Returns:
            The module to use in this layer's place, whose output in eval mode is the same: another
            module, or the layer itself, changed as far as there was something to merge.
        """
        return self

    def extra_repr(self) -> str:
        """``nn.Conv2d``'s description, without what has its default value."""
        text = f"{self.in_channels}, {self.out_channels}"
        text += f", kernel_size={self.kernel_size}, stride={self.stride}"
        defaults = {"padding": (0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
        for name, default in defaults.items():
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)!r}"
        return text


def registered_layers() -> dict[str, type[ConvLayer]]:
    """The convolution layers of this package, by their registered types in alphabetical order."""
    return {
        name: layer
        for name, layer in sorted(CONV_LAYERS.module_dict.items())
        if isinstance(layer, type) and issubclass(layer, ConvLayer)
    }


def global_average(input: Tensor) -> Tensor:
    """The mean over the pixels, (N, C, 1, 1)."""
    return input.mean((2, 3), keepdim=True)


def pointwise(convolution: Any, vectors: Tensor) -> Tensor:
    """A 1 x 1 convolution of single pixels, (N, C) to (N, O).

    A matrix product is faster to call. A convolution that somebody has changed is called itself.
    """
    if is_unmodified(convolution, nn.Conv2d):
        return F.linear(vectors, convolution.weight.flatten(1), convolution.bias)
    return convolution(vectors[:, :, None, None]).flatten(1)


def is_unmodified(module: nn.Module, *types: type[nn.Module]) -> bool:
    """Whether a child is what its layer built, so that calling it does what its weights say.

    It is not if it was replaced (LoRA, another norm) or has hooks (profilers, pruning, recorders),
    its own or those of all modules.
    """
    if type(module) not in types or has_hooks(module):
        return False
    # Only torch 2.7 and later can compile these questions, and tell that they do.
    if is_compiling() and not is_only_compiled():
        return True
    return "forward" not in module.__dict__ and not has_global_hooks()


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks of its own are registered."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
