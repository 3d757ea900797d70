"""The public involution operator: checks, then a call of ``torch.ops.rednet.involution2d``."""

from __future__ import annotations

import torch
from torch import Tensor

from rednet.ops import decomposition
from rednet.ops.autocast import cast_together
from rednet.ops.checks import check_dtypes, check_output_size, check_tensors, is_plain
from rednet.ops.geometry import Geometry, IntOrPair, pair
from rednet.ops.torch_library import involution2d_undispatched  # (defines torch.ops.rednet)
from rednet.ops.tracing import is_profiled, is_recorded, needs_decomposition


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
    torch.onnx.export, operators of PyTorch compute the same. Inside torch.compile the first two are
    an error.

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
    check_tensors(input, weight)
    geometry = Geometry(
        kernel_size=(weight.shape[2], weight.shape[3]),
        stride=pair("stride", stride, minimum=1),
        padding=pair("padding", padding, minimum=0),
        dilation=pair("dilation", dilation, minimum=1),
    )
    check_output_size(input, weight, geometry)
    input, weight = cast_together(input, weight)
    check_dtypes(input, weight)
    if _needs_no_operator(input, weight):
        return involution2d_undispatched(input, weight, geometry)
    if needs_decomposition():
        return decomposition.involution2d(input, weight, geometry)
    return torch.ops.rednet.involution2d(
        input, weight, geometry.stride, geometry.padding, geometry.dilation
    )


def _needs_no_operator(input: Tensor, weight: Tensor) -> bool:
    """Whether nobody differentiates, records or lists what runs; dispatching costs 20 us."""
    return (
        not is_recorded()  # first: the compiler must not look into the others
        and is_plain(input)
        and is_plain(weight)
        and input.device.type == "cpu"
        and not (torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad))
        and not is_profiled()
    )
