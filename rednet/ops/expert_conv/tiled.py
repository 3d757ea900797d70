"""The expert convolution that keeps no kernels: tiles are mixed, convolved and mixed again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rednet.ops.dtypes import accumulation_dtype
from rednet.ops.expert_conv.forms import convolve, is_pointwise, layout, side_by_side
from rednet.ops.expert_conv.kernels import mix_kernels, mix_unscaled, scaled
from rednet.ops.expert_conv.mixing import mix_gradients
from rednet.ops.expert_conv.problem import Window, output_size
from rednet.ops.expert_conv.products import (
    convolve_by_products,
    gains_by_products,
    gradients_by_products,
    gradients_gain_by_products,
)
from rednet.ops.expert_conv.tiles import Tile
from rednet.ops.tracing import is_batched


def convolve_in_tiles(
    input: Tensor,
    experts: Tensor,
    routing: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    window: Window,
    tile: Tile,
    training_tile: Tile,
) -> Tensor:
    """Mixes and convolves a tile of samples and filters at a time.

    Where products of blocks gain, the compiled kernels compute both passes.

    Args:
        input: Shape (N, C, H, W).
        experts: Shape (K, O, C / groups, Kh, Kw).
        routing: Shape (N, K).
        scale: Multiplies the kernels; broadcasts to (N, O, C / groups, Kh, Kw).
        bias: Shape (N, O).
        window: How the kernels slide.
        tile: Samples and filters at a time in the forward pass.
        training_tile: The same for the backward pass, which mixes the kernels again.

    Returns:
        Shape (N, O, Ho, Wo).
    """
    return _InTiles.apply(input, experts, routing, scale, bias, window, tile, training_tile)


class _Operands(NamedTuple):
    """What is convolved, or its gradients; shapes as in :func:`convolve_in_tiles`."""

    input: Tensor
    experts: Tensor
    routing: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def part(self, samples: slice, filters: slice) -> _Operands:
        """What makes these output channels of these samples, as views."""
        input, experts, routing, scale, bias = self
        if scale is not None:
            scale = scale[samples] if scale.shape[1] == 1 else scale[samples, filters]
        bias = None if bias is None else bias[samples, filters]
        return _Operands(input[samples], experts[:, filters], routing[samples], scale, bias)

    def gradients(self) -> _Operands:
        """Tensors to sum up the gradients in, not initialized; bias has none."""
        input, experts, routing, scale, _ = self
        dtype = accumulation_dtype(input.dtype)
        return _Operands(
            torch.empty_like(input, dtype=dtype),
            # Contiguous, whatever the experts are: it is filled through flat views of its parts.
            experts.new_empty(experts.shape, dtype=dtype),
            routing.new_empty(routing.shape, dtype=dtype),
            None if scale is None else scale.new_empty(scale.shape, dtype=dtype),
            None,
        )


class _InTiles(torch.autograd.Function):
    """Mixes and convolves a tile of samples and filters at a time, in the backward pass as well."""

    @staticmethod
    def forward(
        input: Tensor,
        experts: Tensor,
        routing: Tensor,
        scale: Tensor | None,
        bias: Tensor | None,
        window: Window,
        tile: Tile,
        training_tile: Tile,
    ) -> Tensor:
        operands = _Operands(input, experts, routing, scale, bias)
        if gains_by_products(*operands, window):
            return convolve_by_products(*operands, window)
        output = _empty_output(input, experts, window)
        for samples, filters in _tiles(operands, tile):
            own = operands.part(samples, filters)
            kernels = mix_kernels(own.experts, own.routing, own.scale)
            output[samples, filters] = convolve(own.input, kernels, own.bias, window)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:5])
        ctx.window, _, ctx.tile = inputs[5:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        records = torch.is_grad_enabled() or is_batched(grad)
        gradients = _differentiable_gradients if records else _gradients
        return (*gradients(ctx, grad, _Operands(*ctx.saved_tensors)), None, None, None)


def _tiles(operands: _Operands, tile: Tile) -> Iterator[tuple[slice, slice]]:
    """The samples and the filters of each tile; those of the same filters follow each other."""
    for filters in _ranges(operands.experts.shape[1], tile.filters):
        for samples in _ranges(len(operands.input), tile.samples):
            yield samples, filters


def _ranges(length: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, length, step))


def _empty_output(input: Tensor, experts: Tensor, window: Window) -> Tensor:
    size = output_size(input, experts, window)
    return torch.empty(
        (len(input), experts.shape[1], *size),
        dtype=input.dtype,
        device=input.device,
        memory_format=layout(input),
    )


def _differentiable_gradients(ctx: Any, grad: Tensor, operands: _Operands) -> list[Tensor | None]:
    """The gradients that a second derivative is asked of: autograd records them."""
    # Views, because the routing may itself depend on the input: that is not for here to follow.
    with torch.enable_grad():
        views = _Operands._make(None if each is None else each.view_as(each) for each in operands)
        output = convolve(
            views.input,
            mix_kernels(views.experts, views.routing, views.scale),
            views.bias,
            ctx.window,
        )
    is_needed = ctx.needs_input_grad[: len(views)]
    needed = [
        view for view, needs in zip(views, is_needed, strict=True) if needs and view is not None
    ]
    found = iter(torch.autograd.grad(output, needed, grad, create_graph=True))
    return [next(found) if needs else None for needs in is_needed]


def _gradients(ctx: Any, grad: Tensor, operands: _Operands) -> list[Tensor | None]:
    input, experts, routing, scale, bias = operands
    if gradients_gain_by_products(grad, input, experts, routing, scale, ctx.window):
        found = gradients_by_products(grad, input, experts, routing, scale, ctx.window)
        return [*found, None if bias is None else grad.sum((2, 3))]
    return _gradients_in_tiles(ctx, grad, operands)


def _gradients_in_tiles(ctx: Any, grad: Tensor, operands: _Operands) -> list[Tensor | None]:
    sums = operands.gradients()
    for samples, filters in _tiles(operands, ctx.tile):
        _add_gradients(
            ctx,
            grad[samples, filters],
            operands.part(samples, filters),
            sums.part(samples, filters),
            are_first_samples=samples.start == 0,
            are_first_filters=filters.start == 0,
        )
    if operands.bias is not None:
        sums = sums._replace(bias=grad.sum((2, 3)))
    return [
        each.to(grad.dtype) if needs and each is not None else None
        for each, needs in zip(sums, ctx.needs_input_grad[: len(sums)], strict=True)
    ]


def _add_gradients(
    ctx: Any,
    grad: Tensor,
    operands: _Operands,
    sums: _Operands,
    are_first_samples: bool,
    are_first_filters: bool,
) -> None:
    """Adds the gradients of a tile; its are the first samples and filters that some belong to."""
    input, experts, routing, scale, _ = operands
    mixed = mix_unscaled(experts, routing)
    grad_input, grad_kernels = _convolution_gradients(grad, input, scaled(mixed, scale), ctx)
    if grad_input is not None:
        _add(grad_input, sums.input, is_first=are_first_filters)
    if scale is not None and sums.scale is not None:
        grad_scale = (grad_kernels * mixed).sum_to_size(scale.shape)
        _add(grad_scale, sums.scale, is_first=are_first_filters or scale.shape[1] > 1)
    grad_routing = mix_gradients(
        scaled(grad_kernels, scale).flatten(1),
        experts.flatten(1),
        routing,
        out=sums.experts.flatten(1),
        adds=not are_first_samples,
    )
    _add(grad_routing, sums.routing, is_first=are_first_filters)


def _add(part: Tensor, total: Tensor, *, is_first: bool) -> None:
    total.copy_(part) if is_first else total.add_(part)


def _convolution_gradients(
    grad: Tensor, input: Tensor, kernels: Tensor, ctx: Any
) -> tuple[Tensor | None, Tensor]:
    """The gradients of the input, where it is needed, and of the kernels."""
    if is_pointwise(kernels.shape[3:], ctx.window):
        pixels, grads, matrices = input.flatten(2), grad.flatten(2), kernels.flatten(2)
        grad_kernels = torch.bmm(grads, pixels.transpose(1, 2)).view_as(kernels)
        grad_input = None
        if ctx.needs_input_grad[0]:
            grad_input = torch.bmm(matrices.transpose(1, 2), grads).view_as(input)
        return grad_input, grad_kernels
    window = ctx.window
    grad_input, grad_kernels, _ = torch.ops.aten.convolution_backward(
        side_by_side(grad),
        side_by_side(input),
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
