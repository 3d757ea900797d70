"""Loading a stem with a small involution kernel into one with a larger kernel, exactly."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor

from rednet.errors import ArgumentError
from rednet.layers.involution import Involution2d, generated_kernel_size


def widen_stem_kernel(
    backbone: Any, state_dict: MutableMapping[str, Tensor], prefix: str, *_: Any
) -> None:
    """Places the kernel of a checkpoint's stem involution in the center of a RedNet's larger one.

    The published classification checkpoints have a 3 x 3 kernel, the published detectors a 7 x 7
    one. With zeros around it, the larger kernel computes what the smaller one computed.

    Args:
        backbone: The RedNet that loads the checkpoint.
        state_dict: The checkpoint; its two entries are replaced.
        prefix: Prefix of the backbone's entries in it.

    Raises:
        ArgumentError: If the checkpoint's kernel is not square, its size is even or it is larger
            than the RedNet's. Without strict loading, PyTorch's own error would not be raised, and
            the kernel would stay random.
    """
    involution: Involution2d = backbone.stem[1]
    weight, bias = (f"{prefix}stem.1.conv2.conv.{name}" for name in ("weight", "bias"))
    if not {weight, bias} <= state_dict.keys():
        return
    groups = involution.out_channels // involution.group_channels
    given = generated_kernel_size(weight, state_dict[weight], groups)
    border = (involution.kernel_size[0] - given) // 2
    if border < 0:
        raise ArgumentError(
            f"{weight}: the checkpoint's stem has a {given} x {given} kernel, and stem_kernel_size "
            f"is {involution.kernel_size[0]}: set stem_kernel_size={given}"
        )
    if border == 0:
        return
    for name in (weight, bias):
        entry = state_dict[name]
        kernels = entry.view(-1, given, given, entry[0].numel()).movedim(3, 0)
        wide = F.pad(kernels, (border, border, border, border)).movedim(0, 3)
        state_dict[name] = wide.reshape(-1, *entry.shape[1:])
    print_log(
        f"{prefix}stem.1: the checkpoint's {given} x {given} kernel is placed in the center of the "
        f"{involution.kernel_size[0]} x {involution.kernel_size[1]} one; the output is the same",
        logger="current",
    )
