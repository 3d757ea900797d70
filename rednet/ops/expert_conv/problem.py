"""The numbers and factors of an expert convolution."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from rednet.ops.geometry import Geometry, Pair


class Window(NamedTuple):
    """How the kernels slide: as ``nn.Conv2d``'s attributes of these names."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1


class Factors(NamedTuple):
    """What a sample's kernel is multiplied with along its dimensions.

    Attributes:
        channels: Shape (N, C), a factor for each input channel.
        filters: Shape (N, O), a factor for each output channel.
        taps: Shape (N, Kh * Kw), a factor for each kernel position, row by row.
    """

    channels: Tensor | None = None
    filters: Tensor | None = None
    taps: Tensor | None = None


def output_size(input: Tensor, experts: Tensor, window: Window) -> Pair:
    """Height and width of the output."""
    kernel_size = (experts.shape[3], experts.shape[4])
    geometry = Geometry(kernel_size, window.stride, window.padding, window.dilation)
    return geometry.output_size(input.shape[2], input.shape[3])
