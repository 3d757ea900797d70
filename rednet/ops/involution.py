"""The public involution operator: checks, then a call of ``torch.ops.rednet.involution2d``."""

from __future__ import annotations

import torch
from torch import Tensor

import rednet.ops.library  # noqa: F401  (defines torch.ops.rednet)
from rednet.ops import composite
from rednet.ops.autocast import autocast_dtype
from rednet.ops.dtypes import SUPPORTED_DTYPES
from rednet.ops.geometry import Geometry, IntOrPair, pair
from rednet.ops.tracing import takes_plain_operators_alone


def involution2d(
    input: Tensor,
    weight: Tensor,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
) -> Tensor:
    r"""Involution: a sliding window with a kernel of its own at every output pixel.

    .. math::
        out[n, c, h, w] = \sum_{i, j} weight[n, g(c), i, j, h, w] \cdot
            input[n, c, h s_h - p_h + i d_h, w s_w - p_w + j d_w]

    where :math:`g(c) = \lfloor c G / C \rfloor` and pixels outside the input read as 0.

    From `Involution: Inverting the Inherence of Convolution for Visual Recognition
    <https://arxiv.org/abs/2103.06255>`_.

    float16 and bfloat16 accumulate in float32. Under autocast both tensors are cast as a
    convolution's would be (float64 is left alone). Any memory format and any strides are right; a
    channels_last input gives a channels_last output. Gradients of any order exist. torch.func.vmap
    is served by the same kernels; under torch.func's derivatives, forward-mode differentiation and
    torch.onnx.export, operators of PyTorch compute the same.

    Args:
        input: Shape (N, C, H, W).
        weight: Shape (N, G, Kh, Kw, Ho, Wo), one kernel for each group of C / G channels at each
            output pixel.
        stride: Step between output pixels, in input pixels.
        padding: Zeros added on both ends of each side, in input pixels.
        dilation: Distance between kernel elements, in input pixels.

    Returns:
        Shape (N, C, Ho, Wo), where Ho = floor((H + 2 * padding - dilation * (Kh - 1) - 1) / stride)
        + 1 and Wo likewise.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes, devices or window numbers do not fit each other.
    """
    _check_tensors(input, weight)
    geometry = Geometry(
        kernel_size=(weight.shape[2], weight.shape[3]),
        stride=pair("stride", stride, minimum=1),
        padding=pair("padding", padding, minimum=0),
        dilation=pair("dilation", dilation, minimum=1),
    )
    _check_output_size(input, weight, geometry)
    input, weight = _autocast(input, weight)
    _check_dtypes(input, weight)
    if takes_plain_operators_alone():
        return composite.involution2d(input, weight, geometry)
    return torch.ops.rednet.involution2d(
        input, weight, geometry.stride, geometry.padding, geometry.dilation
    )


def _check_tensors(input: Tensor, weight: Tensor) -> None:
    for name, tensor, dims in (
        ("input", input, "(N, C, H, W)"),
        ("weight", weight, "(N, G, Kh, Kw, Ho, Wo)"),
    ):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.dim() != dims.count(",") + 1:
            raise ValueError(f"{name} must have shape {dims}, got {tuple(tensor.shape)}")
    if input.device != weight.device:
        raise ValueError(
            f"input and weight must be on one device, got {input.device} and {weight.device}"
        )
    if input.shape[0] != weight.shape[0]:
        raise ValueError(
            "input and weight must have the same batch size, "
            f"got {input.shape[0]} and {weight.shape[0]}"
        )
    channels, groups = input.shape[1], weight.shape[1]
    if groups == 0 or channels % groups:
        raise ValueError(
            "the channels of input must be a multiple of the groups of weight, "
            f"got {channels} channels and {groups} groups"
        )
    if weight.shape[2] == 0 or weight.shape[3] == 0:
        raise ValueError(f"weight must hold a kernel of at least 1 x 1, got {tuple(weight.shape)}")


def _check_output_size(input: Tensor, weight: Tensor, geometry: Geometry) -> None:
    height, width = geometry.output_size(input.shape[2], input.shape[3])
    if height < 1 or width < 1:
        raise ValueError(
            f"input of {input.shape[2]} x {input.shape[3]} is smaller than the window: "
            f"the output would be {height} x {width} for {geometry}"
        )
    if weight.shape[4] != height or weight.shape[5] != width:
        raise ValueError(
            f"weight must hold a kernel for each of the {height} x {width} output pixels of an "
            f"input of {input.shape[2]} x {input.shape[3]}, "
            f"got {weight.shape[4]} x {weight.shape[5]}"
        )


def _autocast(input: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    dtype = autocast_dtype(input.device.type)
    if dtype is None or torch.float64 in (input.dtype, weight.dtype):
        return input, weight
    return _cast(input, dtype), _cast(weight, dtype)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _check_dtypes(input: Tensor, weight: Tensor) -> None:
    for name, tensor in (("input", input), ("weight", weight)):
        if tensor.dtype not in SUPPORTED_DTYPES:
            raise TypeError(f"{name} must be one of {SUPPORTED_DTYPES}, got {tensor.dtype}")
    if input.dtype != weight.dtype:
        raise TypeError(
            f"input and weight must have the same dtype, got {input.dtype} and {weight.dtype}"
        )
