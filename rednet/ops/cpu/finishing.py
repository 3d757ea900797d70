"""The compiled kernel for what follows a convolution; see src/finish.h."""

from __future__ import annotations

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


def finish(
    input: Tensor,
    output: Tensor,
    statistics: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    epsilon: float,
    addend: Tensor | None,
    rectifies: bool,
) -> None:
    """Fills ``output`` with the norm of ``input`` plus ``addend``, at least 0 if it ``rectifies``.

    Args:
        input: Shape (N, C, H, W), dense in channels_last, as ``output`` and ``addend`` are.
        output: Where results go; may be ``input``.
        statistics: Mean, variance, weight and bias of the norm, (C,); None for 0, 1, 1 and 0.
        epsilon: What is added to the variance; 0 without a norm.
        addend: What is added to the norm's output.
        rectifies: Whether a ReLU follows.
    """
    batch, channels, height, width = input.shape
    maps = input, output, addend, *statistics
    # A list: this runs some fifty times for an image.
    addresses = [None if each is None else each.data_ptr() for each in maps]
    map = loader.Finishing(batch * height * width, channels, *addresses, epsilon, rectifies)
    loader.call("finish", input.dtype, map)
