"""Batch norms in eval mode as what they are: a scale and a shift of each channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rednet.ops.dtypes import accumulation_dtype


def has_statistics(norm: nn.Module) -> bool:
    """Whether a norm only scales and shifts in eval mode, by its running statistics."""
    if isinstance(norm, _BatchNorm):
        return norm.running_var is not None
    # torchvision's and detectron2's: buffers named as those of a batch norm, always in use.
    return _is_frozen(norm)


def is_foldable(norm: nn.Module) -> bool:
    """Whether a norm now only scales and shifts."""
    return has_statistics(norm) and (_is_frozen(norm) or not norm.training)


def _is_frozen(norm: nn.Module) -> bool:
    return type(norm).__name__ == "FrozenBatchNorm2d"


def scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """The scale and the shift that the norm applies in eval mode.

    Args:
        norm: A norm that :func:`has_statistics`.

    Returns:
        Two tensors, (C,), of float32 for a 16-bit norm and else of its dtype, through which the
        gradients of the norm's parameters flow.
    """
    mean, variance = norm.running_mean, norm.running_var
    # get_buffer breaks torch 2.1's graph
    assert isinstance(mean, Tensor) and isinstance(variance, Tensor)
    dtype = accumulation_dtype(variance.dtype)
    scale = torch.rsqrt(variance.to(dtype) + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.to(dtype)
    shift = -mean.to(dtype) * scale
    if norm.bias is not None:
        shift = shift + norm.bias.to(dtype)
    return scale, shift


def scale_filters(weight: Tensor, scale: Tensor) -> Tensor:
    """Multiplies each output channel's kernel, in the scale's dtype."""
    return weight.to(scale.dtype) * scale.view(-1, 1, 1, 1)


@torch.no_grad()
def fold(convolution: nn.Conv2d, scale: Tensor, shift: Tensor | None = None) -> None:
    """Makes a convolution scale and shift its output by itself.

    Args:
        convolution: The convolution, changed in place.
        scale: The factor of each output channel.
        shift: What each output channel gets added; None for nothing, if there is no bias either.
    """
    weight = convolution.weight
    folded = scale_filters(weight, scale).to(weight.dtype)
    convolution.weight = nn.Parameter(folded, weight.requires_grad)
    if convolution.bias is not None:
        shift = convolution.bias * scale + (0 if shift is None else shift)
    if shift is not None:
        convolution.bias = nn.Parameter(shift.to(weight.dtype), weight.requires_grad)
