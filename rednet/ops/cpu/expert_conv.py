"""The compiled expert convolution, for ``rednet.ops.expert_conv``; see src/expert_conv.h."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ctypes import c_int64

import torch
from torch import Tensor

from rednet.ops.cpu import loader
from rednet.ops.expert_conv.problem import Window, output_size

# Of the columns that are unfolded at a time: more would be written to memory, and read from there.
_MOST_BYTES = 16 * 2**20
# Filters that contribute to a row of the routing's gradients; src/expert_gradients.h has the same.
_FILTERS_PER_SUM = 4


def convolve_experts(
    input: Tensor,
    experts: Tensor,
    routing: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    window: Window,
) -> Tensor:
    """Convolves each sample with its mixture of the experts, without groups.

    Args:
        input: Shape (N, C, H, W), of any strides.
        experts: Shape (K, O, C, Kh, Kw), each contiguous.
        routing: Shape (N, K).
        scale: Multiplies the kernels; broadcasts to (N, 1, C, Kh, Kw).
        bias: Shape (N, O).
        window: How the kernels slide.

    Returns:
        Shape (N, O, Ho, Wo), contiguous.
    """
    output = input.new_empty(len(input), experts.shape[1], *output_size(input, experts, window))
    scales = _scales(scale, experts, len(input))
    unfolded, parts = _parts(input, experts[0, 0].numel() * output[0, 0].numel())
    for samples in parts:
        own = dict(
            image=input[samples],
            shares=routing[samples].contiguous(),
            expert_rows=experts,
            scale=None if scales is None else scales[samples],
            bias=None if bias is None else bias[samples].contiguous(),
            unfolded=unfolded,
            output=output[samples],
        )
        problem = _describe(own, output.shape, window)
        loader.call("unfold", input.dtype, problem)
        loader.call("convolve_experts", input.dtype, problem)
    return output


def expert_gradients(
    grad: Tensor,
    input: Tensor,
    experts: Tensor,
    routing: Tensor,
    scale: Tensor | None,
    window: Window,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The gradients of :func:`convolve_experts`.

    Args:
        grad: Shape (N, O, Ho, Wo): that of the output. O is a multiple of 8.
        input: As there; so are the arguments that follow. C * Kh * Kw is a multiple of 48.
        experts: Not larger than 16 x 16.
        routing: As there.
        scale: As there.
        window: As there.

    Returns:
        The gradients of the input, contiguous, of the experts, of the routing and of the scale.
    """
    grad = grad.contiguous()
    grad_input = torch.empty_like(input, memory_format=torch.contiguous_format)
    grad_experts = experts.new_empty(experts.shape)
    grad_routing = torch.empty_like(routing)
    filters, pixels = grad.shape[1], grad[0, 0].numel()
    scales = _scales(scale, experts, len(input))
    grad_scales = None if scales is None else torch.empty_like(scales)
    unfolded, parts = _parts(input, experts[0, 0].numel() * pixels)
    for samples in parts:
        shares = routing[samples].contiguous()
        share_gradients = input.new_zeros(filters // _FILTERS_PER_SUM, shares.numel())
        own = dict(
            image=input[samples],
            shares=shares,
            expert_rows=experts,
            unfolded=unfolded,
            grad=grad[samples],
            grad_panels=input.new_empty(shares.shape[0], filters * pixels),
            grad_blocks=input.new_empty(shares.shape[0], filters * pixels),
            grad_experts=grad_experts,
            share_gradients=share_gradients,
            grad_input=grad_input[samples],
            scale=None if scales is None else scales[samples],
            scale_gradients=None if grad_scales is None else grad_scales[samples],
        )
        problem = _describe(own, grad.shape, window)
        problem.transposes, problem.adds = True, samples.start > 0
        for name in ("unfold", "pack_gradient", "expert_gradients", "input_gradient"):
            loader.call(name, input.dtype, problem)
        grad_routing[samples] = share_gradients.sum(0).view(shares.shape)
    if scale is None or grad_scales is None:
        return grad_input, grad_experts, grad_routing, None
    grad_scale = grad_scales.view(-1, 1, *experts.shape[2:]).sum_to_size(scale.shape)
    return grad_input, grad_experts, grad_routing, grad_scale


def _scales(scale: Tensor | None, experts: Tensor, samples: int) -> Tensor | None:
    """A scale of (N, 1, C, Kh, Kw), or what broadcasts to it, as (N, C * Kh * Kw), contiguous."""
    if scale is None:
        return None
    return scale.expand(-1, 1, *experts.shape[2:]).reshape(samples, -1).contiguous()


def _parts(input: Tensor, numbers: int) -> tuple[Tensor, Iterator[slice]]:
    """Memory for the columns of some samples, of as many numbers each, and the samples."""
    step = min(max(_MOST_BYTES // (numbers * input.element_size()), 1), len(input))
    starts = range(0, len(input), step)
    return input.new_empty(step, numbers), (slice(start, start + step) for start in starts)


def _describe(
    tensors: Mapping[str, Tensor | None], output_shape: torch.Size, window: Window
) -> loader.ExpertConvolution:
    """The argument of the kernels, with these tensors."""
    image, experts = tensors["image"], tensors["expert_rows"]
    assert image is not None and experts is not None
    stride, padding, dilation, _ = window
    rows, columns = (
        (c_int64 * 6)(
            *(image.shape[2 + side], output_shape[2 + side], experts.shape[3 + side]),
            *(stride[side], padding[side], dilation[side]),
        )
        for side in (0, 1)
    )
    return loader.ExpertConvolution(
        samples=len(image),
        experts=len(experts),
        filters=experts.shape[1],
        channels=image.shape[1],
        rows=rows,
        columns=columns,
        image_steps=(c_int64 * 4)(*image.stride()),
        expert_step=experts.stride(0),
        **{name: each.data_ptr() for name, each in tensors.items() if each is not None},
    )
