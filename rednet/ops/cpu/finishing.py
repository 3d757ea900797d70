"""The compiled kernel for what follows a convolution; see src/finish.h."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rednet.ops.checks import is_plain
from rednet.ops.cpu import loader


def unsupported_reason(output: Tensor) -> str | None:
    """Why the kernel cannot finish such a map, None if it can."""
    if not is_plain(output) or output.device.type != "cpu" or output.dtype not in loader.DTYPES:
        return f"it supports tensors of {loader.DTYPES} on a CPU only"
    if not output.is_contiguous(memory_format=torch.channels_last) or output.numel() == 0:
        return "it supports dense maps in channels_last only"
    if loader.load() is None:
        return "its kernels were not built"
    return None


class Following(NamedTuple):
    """What follows a convolution.

    Attributes:
        statistics: Mean, variance, weight and bias of the norm, (C,); None for 0, 1, 1 and 0.
        epsilon: What is added to the variance; 0 without a norm.
        addend: What is added to the norm's output, a map that is dense in channels_last, or None.
        rectifies: Whether a ReLU ends it.
    """

    statistics: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
    epsilon: float
    addend: Tensor | None
    rectifies: bool

    def describe(self, input: Tensor, output: Tensor) -> loader.Finishing:
        """The kernels' argument for an output of (N, C, H, W)."""
        batch, channels, height, width = output.shape
        maps = input, output, self.addend, *self.statistics
        # A list: this runs some fifty times for an image.
        addresses = [None if each is None else each.data_ptr() for each in maps]
        pixels = batch * height * width
        return loader.Finishing(pixels, channels, *addresses, self.epsilon, self.rectifies)


def finish(input: Tensor, output: Tensor, following: Following) -> None:
    """Fills ``output`` with what follows ``input``.

    Args:
        input: Shape (N, C, H, W), dense in channels_last, as ``output`` is.
        output: Where results go; may be ``input``.
        following: What follows.
    """
    loader.call("finish", input.dtype, following.describe(input, output))
