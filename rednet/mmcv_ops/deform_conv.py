"""Deformable convolution, by torchvision's operators.

From `Deformable Convolutional Networks <https://arxiv.org/abs/1703.06211>`_ and, with a mask,
`Deformable ConvNets v2 <https://arxiv.org/abs/1811.11168>`_. mmcv's ``im2col_step`` bounds the
memory of its own kernels; torchvision chooses its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rednet.mmcv_ops.autograd import at_least_float32


class _Window(NamedTuple):
    """The numbers at the end of torchvision's arguments, in its order."""

    stride_height: int
    stride_width: int
    padding_height: int
    padding_width: int
    dilation_height: int
    dilation_width: int
    groups: int
    offset_groups: int
    has_mask: bool


class _Gradients(NamedTuple):
    """What torchvision's backward operator returns, in its order."""

    input: Tensor
    weight: Tensor
    offset: Tensor
    mask: Tensor
    bias: Tensor


def _window(numbers: dict[str, Any]) -> _Window:
    """Reads the window off mmcv's keywords for deformable convolution without a mask."""
    return _Window(
        stride_height=numbers["dH"],
        stride_width=numbers["dW"],
        padding_height=numbers["padH"],
        padding_width=numbers["padW"],
        dilation_height=numbers["dilationH"],
        dilation_width=numbers["dilationW"],
        groups=numbers["group"],
        offset_groups=numbers["deformable_group"],
        has_mask=False,
    )


def _modulated_window(numbers: dict[str, Any]) -> _Window:
    """Reads the window off mmcv's keywords for deformable convolution with a mask."""
    return _Window(
        stride_height=numbers["stride_h"],
        stride_width=numbers["stride_w"],
        padding_height=numbers["pad_h"],
        padding_width=numbers["pad_w"],
        dilation_height=numbers["dilation_h"],
        dilation_width=numbers["dilation_w"],
        groups=numbers["group"],
        offset_groups=numbers["deformable_group"],
        has_mask=True,
    )


def _convolve(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, window: _Window
) -> Tensor:
    tensors = at_least_float32(input, weight, offset, mask, bias)
    return torch.ops.torchvision.deform_conv2d(*tensors, *window)


def _gradients(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor,
    bias: Tensor,
    window: _Window,
) -> _Gradients:
    tensors = at_least_float32(grad_output, input, weight, offset, mask, bias)
    return _Gradients(*torch.ops.torchvision._deform_conv2d_backward(*tensors, *window))


def _no_mask(input: Tensor) -> Tensor:
    return input.new_zeros(len(input), 0)


def _no_bias(input: Tensor, weight: Tensor) -> Tensor:
    return input.new_zeros(len(weight))


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **numbers: Any,
) -> None:
    """Fills the output of a deformable convolution.

    Args:
        input: Shape (N, C, H, W).
        weight: Shape (O, C / groups, Kh, Kw).
        offset: Shape (N, 2 * deform groups * Kh * Kw, Ho, Wo), as (y, x) for each kernel position.
        output: Shape (N, O, Ho, Wo).
        columns: A buffer of mmcv's kernels; not used.
        ones: The same.
        **numbers: mmcv's keywords for stride, padding, dilation and groups.
    """
    none = _no_mask(input), _no_bias(input, weight)
    output.copy_(_convolve(input, weight, offset, *none, _window(numbers)))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **numbers: Any,
) -> None:
    """Fills ``grad_input`` and ``grad_offset``.

    torchvision computes the gradient of the weight with them. It is left in the buffer ``columns``,
    where mmcv passes it on to :func:`deform_conv_backward_parameters`.
    """
    none = _no_mask(input), _no_bias(input, weight)
    result = _gradients(grad_output, input, weight, offset, *none, _window(numbers))
    grad_input.copy_(result.input)
    grad_offset.copy_(result.offset)
    columns.resize_(result.weight.shape).copy_(result.weight)


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    **numbers: Any,
) -> None:
    """Fills ``grad_weight``; mmcv passes a scale, which is 1."""
    if columns.shape == grad_weight.shape:
        grad_weight.copy_(columns)
        return
    weight = torch.zeros_like(grad_weight)  # its gradient does not depend on it
    none = _no_mask(input), _no_bias(input, weight)
    result = _gradients(grad_output, input, weight, offset, *none, _window(numbers))
    grad_weight.copy_(result.weight)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    **numbers: Any,
) -> None:
    """Fills the output of a modulated deformable convolution.

    Args:
        input: Shape (N, C, H, W).
        weight: Shape (O, C / groups, Kh, Kw).
        bias: Shape (O,); read where ``with_bias`` is among the numbers and true.
        ones: A buffer of mmcv's kernels; not used.
        offset: Shape (N, 2 * deform groups * Kh * Kw, Ho, Wo), as (y, x) for each kernel position.
        mask: Shape (N, deform groups * Kh * Kw, Ho, Wo).
        output: Shape (N, O, Ho, Wo).
        columns: A buffer of mmcv's kernels; not used.
        **numbers: mmcv's keywords for stride, padding, dilation and groups, and ``with_bias``.
    """
    added = bias if numbers["with_bias"] else _no_bias(input, weight)
    output.copy_(_convolve(input, weight, offset, mask, added, _modulated_window(numbers)))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    **numbers: Any,
) -> None:
    """Fills the five gradients, that of the bias where ``with_bias`` is true."""
    added = bias if numbers["with_bias"] else _no_bias(input, weight)
    window = _modulated_window(numbers)
    result = _gradients(grad_output, input, weight, offset, mask, added, window)
    grad_input.copy_(result.input)
    grad_weight.copy_(result.weight)
    grad_offset.copy_(result.offset)
    grad_mask.copy_(result.mask)
    if numbers["with_bias"]:
        grad_bias.copy_(result.bias)
