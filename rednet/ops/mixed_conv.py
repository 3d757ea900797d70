"""Convolution of each sample with a kernel of its own, mixed from experts that all samples share.

There is one definition and several forms of it; ``mixed_conv2d`` chooses:

- ``_pointwise``: a 1 x 1 kernel without groups is a batched matrix product, the fastest form at
  every batch size.
- ``_grouped``: the samples are laid side by side as the groups of one convolution, the published
  form. It convolves as fast as a static convolution as long as the mixed kernels stay small.
- ``_InChunks``: N mixed kernels take N times a kernel's memory, and again for their gradients.
  Beyond ``_CHUNK_BYTES`` moving them costs more than convolving, so a few samples at a time are
  mixed, convolved and forgotten; the backward pass mixes them again. Training memory does not grow
  with the mixed kernels.
- ``_patches``: unfolded patches times kernels, the form to export: nothing in its graph depends on
  the batch size.

The forms differ in the order of summation alone: an image's output in one batch and in another
agree to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rednet.ops.autocast import autocast_dtype
from rednet.ops.dtypes import accumulation_dtype
from rednet.ops.geometry import Geometry, IntOrPair, Pair, pair
from rednet.ops.tracing import is_compiling, is_exporting

# Just under the 32 MiB from which glibc takes every tensor from the system, page by page, and gives
# it back at once: measured on a CPU, mixed kernels beyond it cost more than their convolution.
_CHUNK_BYTES = 31 * 2**20


class _Window(NamedTuple):
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


def mixed_conv2d(
    input: Tensor,
    experts: Tensor,
    mixture: Tensor,
    taps: Tensor | None = None,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> Tensor:
    r"""Convolves sample n with ``taps[n] * sum over k of mixture[n, k] * experts[k]``.

    Differentiable twice. Under autocast all tensors are cast as a convolution's would be.

    Args:
        input: Shape (N, C, H, W).
        experts: Shape (K, O, C / groups, Kh, Kw).
        mixture: Shape (N, K), the share of each expert in each sample's kernel.
        taps: Shape (N, Kh * Kw), a factor for each kernel position, row by row.
        bias: Shape (N, O), added to the output.
        stride: Step between output pixels, in input pixels.
        padding: Zeros added on both ends of each side, in input pixels.
        dilation: Distance between kernel elements, in input pixels.
        groups: Blocks that the channels are split into.

    Returns:
        Shape (N, O, Ho, Wo), of the input's memory format.

    Raises:
        ValueError: If shapes or window numbers do not fit each other.
    """
    window = _Window(
        stride=pair("stride", stride, minimum=1),
        padding=pair("padding", padding, minimum=0),
        dilation=pair("dilation", dilation, minimum=1),
        groups=groups,
    )
    _check_shapes(input, experts, mixture, taps, bias, groups)
    input, experts, mixture, taps, bias = _autocast(input, experts, mixture, taps, bias)
    if input.shape[0] == 0 or is_exporting():
        return _patches(input, _mix(experts, mixture, taps), bias, window)
    if tuple(experts.shape[3:]) == (1, 1) and window.padding == (0, 0):
        input = input[:, :, :: window.stride[0], :: window.stride[1]]
        window = window._replace(stride=(1, 1))
    if is_compiling() or input.shape[0] <= _chunk_size(input, experts):
        return _convolve(input, _mix(experts, mixture, taps), bias, window)
    output = _InChunks.apply(input, experts, mixture, taps, window, _chunk_size(input, experts))
    return output if bias is None else output + bias[:, :, None, None]


def _check_shapes(
    input: Tensor,
    experts: Tensor,
    mixture: Tensor,
    taps: Tensor | None,
    bias: Tensor | None,
    groups: int,
) -> None:
    if input.dim() != 4:
        raise ValueError(f"input must have shape (N, C, H, W), got {tuple(input.shape)}")
    if experts.dim() != 5 or experts.shape[2] * groups != input.shape[1]:
        raise ValueError(
            f"experts must have shape (K, O, C / groups, Kh, Kw) with C={input.shape[1]} and "
            f"groups={groups}, got {tuple(experts.shape)}"
        )
    if experts.shape[1] % groups:
        raise ValueError(f"groups must divide the {experts.shape[1]} output channels, got {groups}")
    batch, taken = input.shape[0], experts.shape[3] * experts.shape[4]
    for name, tensor, columns in (
        ("mixture", mixture, experts.shape[0]),
        ("taps", taps, taken),
        ("bias", bias, experts.shape[1]),
    ):
        if tensor is not None and tuple(tensor.shape) != (batch, columns):
            raise ValueError(
                f"{name} must have shape {(batch, columns)}, got {tuple(tensor.shape)}"
            )


def _autocast(input: Tensor, *others: Tensor | None) -> list[Any]:
    dtype = autocast_dtype(input.device.type)
    if dtype is None or input.dtype == torch.float64:
        return [input, *others]
    return [None if tensor is None else tensor.to(dtype) for tensor in (input, *others)]


def _chunk_size(input: Tensor, experts: Tensor) -> int:
    """How many samples to convolve at a time."""
    if input.device.type != "cpu":  # measured on CPUs alone
        return input.shape[0]
    return max(1, _CHUNK_BYTES // (experts[0].numel() * experts.element_size()))


# ---- the kernels


def _mix(experts: Tensor, mixture: Tensor, taps: Tensor | None) -> Tensor:
    """The kernels of all samples, (N, O, C / groups, Kh, Kw)."""
    return _scale(_mix_experts(experts, mixture), taps)


def _mix_experts(experts: Tensor, mixture: Tensor) -> Tensor:
    return (mixture @ experts.flatten(1)).unflatten(1, experts.shape[1:])


def _scale(kernels: Tensor, taps: Tensor | None) -> Tensor:
    if taps is None:
        return kernels
    return kernels * taps.unflatten(1, kernels.shape[3:])[:, None, None]


# ---- the convolution


def _convolve(input: Tensor, kernels: Tensor, bias: Tensor | None, window: _Window) -> Tensor:
    if _is_pointwise(kernels, window):
        return _pointwise(input, kernels, bias)
    return _like(_grouped(input, kernels, bias, window), input)


def _is_pointwise(kernels: Tensor, window: _Window) -> bool:
    return tuple(kernels.shape[3:]) == (1, 1) and window == ((1, 1), (0, 0), window.dilation, 1)


def _channels_last(image: Tensor) -> bool:
    return image.stride(1) == 1 and not image.is_contiguous()


def _like(output: Tensor, input: Tensor) -> Tensor:
    """The output in the input's memory format."""
    if _channels_last(input):
        return output.contiguous(memory_format=torch.channels_last)
    return output


def _pointwise(input: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
    pixels, matrices = input.flatten(2), kernels.flatten(2)
    if _channels_last(input):
        output = _product(pixels.mT, matrices.mT, None if bias is None else bias[:, None])
        return output.unflatten(1, input.shape[2:]).permute(0, 3, 1, 2)
    output = _product(matrices, pixels, None if bias is None else bias[:, :, None])
    return output.unflatten(2, input.shape[2:])


def _product(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    return torch.bmm(left, right) if bias is None else torch.baddbmm(bias, left, right)


def _grouped(input: Tensor, kernels: Tensor, bias: Tensor | None, window: _Window) -> Tensor:
    output = F.conv2d(
        _side_by_side(input),
        kernels.flatten(0, 1),
        None if bias is None else bias.flatten(),
        window.stride,
        window.padding,
        window.dilation,
        window.groups * input.shape[0],
    )
    return output.unflatten(1, kernels.shape[:2])[0]


def _side_by_side(images: Tensor) -> Tensor:
    return images.reshape(1, images.shape[0] * images.shape[1], *images.shape[2:])


def _patches(input: Tensor, kernels: Tensor, bias: Tensor | None, window: _Window) -> Tensor:
    stride, padding, dilation, groups = window
    channels, depth, height, width = kernels.shape[1:]
    columns = F.unfold(input, (height, width), dilation, padding, stride)
    columns = columns.unflatten(1, (groups, depth * height * width))
    matrices = kernels.flatten(2).unflatten(1, (groups, channels // groups))
    output = (matrices @ columns).flatten(1, 2)
    if bias is not None:
        output = output + bias[:, :, None]
    geometry = Geometry((height, width), stride, padding, dilation)
    return output.unflatten(2, geometry.output_size(input.shape[2], input.shape[3]))


# ---- the form that keeps no kernels


class _InChunks(torch.autograd.Function):
    """Mixes and convolves ``chunk`` samples at a time, in the backward pass as well."""

    @staticmethod
    def forward(
        input: Tensor,
        experts: Tensor,
        mixture: Tensor,
        taps: Tensor | None,
        window: _Window,
        chunk: int,
    ) -> Tensor:
        return torch.cat(
            [
                _convolve(images, _mix(experts, shares, factors), None, window)
                for images, shares, factors in _split(chunk, input, mixture, taps)
            ]
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:4])
        ctx.window, ctx.chunk = inputs[4:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = _differentiable_gradients if torch.is_grad_enabled() else _gradients
        return *gradients(ctx, grad, *ctx.saved_tensors), None, None


def _split(size: int, *tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    batch = next(len(tensor) for tensor in tensors if tensor is not None)
    for start in range(0, batch, size):
        yield tuple(None if each is None else each[start : start + size] for each in tensors)


def _differentiable_gradients(
    ctx: Any, grad: Tensor, input: Tensor, experts: Tensor, mixture: Tensor, taps: Tensor | None
) -> list[Tensor | None]:
    """The gradients that a second derivative is asked of: autograd records them."""
    output = _convolve(input, _mix(experts, mixture, taps), None, ctx.window)
    is_needed = ctx.needs_input_grad[:4]
    needed = [
        tensor
        for tensor, needs in zip((input, experts, mixture, taps), is_needed, strict=True)
        if tensor is not None and needs
    ]
    found = iter(torch.autograd.grad(output, needed, grad, create_graph=True))
    return [next(found) if needs else None for needs in is_needed]


def _gradients(
    ctx: Any, grad: Tensor, input: Tensor, experts: Tensor, mixture: Tensor, taps: Tensor | None
) -> tuple[Tensor | None, ...]:
    grad_experts = torch.zeros_like(experts.flatten(1), dtype=accumulation_dtype(experts.dtype))
    grads_of_samples = []
    for grads, images, shares, factors in _split(ctx.chunk, grad, input, mixture, taps):
        mixed = _mix_experts(experts, shares)
        grad_images, grad_kernels = _convolution_gradients(
            grads, images, _scale(mixed, factors), ctx
        )
        grad_factors = None
        if factors is not None:
            grad_factors = (grad_kernels * mixed).sum((1, 2)).flatten(1)
        grad_mixed = _scale(grad_kernels, factors).flatten(1)
        grad_experts.addmm_(shares.t().to(grad_experts.dtype), grad_mixed.to(grad_experts.dtype))
        grads_of_samples.append((grad_images, grad_mixed @ experts.flatten(1).t(), grad_factors))
    grad_input, grad_mixture, grad_taps = (
        None if parts[0] is None else torch.cat(parts)
        for parts in zip(*grads_of_samples, strict=True)
    )
    return grad_input, grad_experts.view_as(experts).to(experts.dtype), grad_mixture, grad_taps


def _convolution_gradients(
    grad: Tensor, input: Tensor, kernels: Tensor, ctx: Any
) -> tuple[Tensor | None, Tensor]:
    """The gradients of the input, where it is needed, and of the kernels."""
    if _is_pointwise(kernels, ctx.window):
        pixels, grads, matrices = input.flatten(2), grad.flatten(2), kernels.flatten(2)
        grad_kernels = torch.bmm(grads, pixels.transpose(1, 2)).view_as(kernels)
        grad_input = None
        if ctx.needs_input_grad[0]:
            grad_input = torch.bmm(matrices.transpose(1, 2), grads).view_as(input)
        return grad_input, grad_kernels
    window = ctx.window
    grad_input, grad_kernels, _ = torch.ops.aten.convolution_backward(
        _side_by_side(grad),
        _side_by_side(input),
        kernels.flatten(0, 1),
        None,
        window.stride,
        window.padding,
        window.dilation,
        False,
        (0, 0),
        window.groups * len(input),
        (ctx.needs_input_grad[0], True, False),
    )
    grad_input = None if grad_input is None else grad_input.view_as(input)
    return grad_input, grad_kernels.view_as(kernels)
