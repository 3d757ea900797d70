"""Convolution of each sample with a kernel of its own, mixed from experts that all samples share.

There is one definition and several forms of it; ``expert_conv2d`` chooses:

- ``_pointwise``: a 1 x 1 kernel without groups is a batched matrix product.
- ``_grouped``: the samples are laid side by side as the groups of one convolution, the published
  form.
- ``_one_by_one``: a convolution for each sample. Images in channels_last that are larger than their
  kernels take it on a CPU: laid side by side they would have to be copied, and back.
- ``_InTiles``: any of these forms for a few samples and output channels at a time, whose kernels
  are mixed, used and forgotten; the backward pass mixes them again. Large batches take it on a CPU,
  because moving N kernels, or N images for the grouped form, through memory costs more than
  convolving: it is up to three times as fast, and training memory does not grow with the kernels.
- ``_patches``: unfolded patches times kernels, the form to export: nothing in its graph depends on
  the batch size.

The forms differ in the order of summation alone: an image's output in one batch and in another
agree to rounding. docs/variants.md has the measurements.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rednet.ops.autocast import autocast_dtype
from rednet.ops.dtypes import accumulation_dtype
from rednet.ops.expert_conv.mixing import mix, mix_gradients
from rednet.ops.geometry import Geometry, Pair
from rednet.ops.tracing import is_batched, is_compiling, is_exporting, is_transformed

# glibc serves tensors of 32 MiB and more with fresh pages each time, whose first touch is slow, and
# of smaller ones it keeps no more than twice as much as the largest that was freed. A convolution
# makes a copy of kernels, its derivative two and a gradient.
_HEAP_BYTES = 31 * 2**20
_LEARNT_HEAP_BYTES = 20 * 2**20
# Beyond that, tiles whose tensors stay in the cache, with room for the convolution's own copies.
_TILE_BYTES = 10 * 2**20
# So many samples share a reading of the experts, where a tile has room for their kernels.
_SHARING = 8
# Tiles have a multiple of so many output channels: those of a vector of any CPU's.
_FILTERS_STEP = 16


class Window(NamedTuple):
    """How the kernels slide: as ``nn.Conv2d``'s attributes of these names."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1


class Tile(NamedTuple):
    """How many samples and output channels to convolve at a time."""

    samples: int
    filters: int


class Factors(NamedTuple):
    """What a sample's kernel is multiplied with along its dimensions.

    Attributes:
        channels: Shape (N, C), a factor for each input channel.
        filters: Shape (N, O), a factor for each output channel.
        taps: Shape (N, Kh * Kw), a factor for each kernel position, row by row.
    """

    channels: Tensor | None = None
    filters: Tensor | None = None
    taps: Tensor | None = None


def expert_conv2d(
    input: Tensor,
    experts: Tensor,
    mixture: Tensor,
    bias: Tensor | None = None,
    factors: Factors = Factors(),  # noqa: B008  (immutable)
    window: Window = Window(),  # noqa: B008
) -> Tensor:
    r"""Convolves sample n with ``factors[n] * sum over k of mixture[n, k] * experts[k]``.

    Differentiable twice. It is for layers, which have checked their input; it checks nothing again.

    Args:
        input: Shape (N, C, H, W).
        experts: Shape (K, O, C / groups, Kh, Kw).
        mixture: Shape (N, K), the share of each expert in each sample's kernel.
        bias: Shape (N, O), added to the output.
        factors: Factors along the kernels' dimensions.
        window: Stride, padding with zeros, dilation and groups.

    Returns:
        Shape (N, O, Ho, Wo), of the input's memory format.
    """
    channels, filters, taps = factors
    if channels is None and filters is None and taps is None:
        return _convolve_mixed(input, experts, mixture, None, bias, window)
    if _are_kernels_smaller(input, experts):
        scale = _kernel_scale(factors, experts, window.groups)
        return _convolve_mixed(input, experts, mixture, scale, bias, window)
    if channels is not None:
        input = input * channels[:, :, None, None]
    scale = _kernel_scale(Factors(taps=taps), experts, window.groups)
    if filters is None:
        return _convolve_mixed(input, experts, mixture, scale, bias, window)
    output = _convolve_mixed(input, experts, mixture, scale, None, window)
    # Autocast leaves products and sums of tensors alone.
    output = output * filters.to(output.dtype)[:, :, None, None]
    return _add_bias(output, bias)


def _convolve_mixed(
    input: Tensor,
    experts: Tensor,
    mixture: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    window: Window,
) -> Tensor:
    """Chooses the form; ``scale`` broadcasts to (N, O, C / groups, Kh, Kw)."""
    if input.shape[0] == 0 or is_exporting():
        return _patches(input, experts, _mix(experts, mixture, scale), bias, window)
    if experts.shape[3:] == (1, 1) and window.padding == (0, 0) and window.stride != (1, 1):
        input = input[:, :, :: window.stride[0], :: window.stride[1]]
        window = window._replace(stride=(1, 1))
    if not is_compiling() and input.device.type == "cpu":
        _keep_freed_memory()
    if input.shape[0] == 1 or is_compiling() or is_transformed():
        return _convolve(input, _mix(experts, mixture, scale), bias, window)
    learnt_tile = _tile(input, experts, window, _LEARNT_HEAP_BYTES)
    if learnt_tile == (input.shape[0], experts.shape[1]):
        return _convolve(input, _mix(experts, mixture, scale), bias, window)
    tile = _tile(input, experts, window, _HEAP_BYTES)
    operands = _autocast(input, experts, mixture, scale, bias)
    return _InTiles.apply(*operands, window, tile, learnt_tile)


def _autocast(input: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """What autocast does to a convolution's tensors, for an operator that it does not know."""
    dtype = autocast_dtype(input.device.type)
    if dtype is None or input.dtype == torch.float64:
        return (input, *others)
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in (input, *others))


def _add_bias(output: Tensor, bias: Tensor | None) -> Tensor:
    return output if bias is None else output + bias.to(output.dtype)[:, :, None, None]


def _are_kernels_smaller(input: Tensor, kernels: Tensor) -> bool:
    """Whether a sample's kernel has fewer numbers than its image, on a CPU.

    Then it is the kernel that is multiplied with the factors of the channels, and it costs little
    to convolve samples one by one. Other devices have not been measured.
    """
    filters, depth, height, width = kernels.shape[1:]
    pixels = input.shape[1] * input.shape[2] * input.shape[3]
    return input.device.type == "cpu" and filters * depth * height * width <= pixels


@functools.cache
def _keep_freed_memory() -> None:
    """Frees a large block, untouched: glibc keeps memory in proportion to the largest freed."""
    torch.empty(_HEAP_BYTES, dtype=torch.uint8)


def _tile(input: Tensor, experts: Tensor, window: Window, most_kernel_bytes: int) -> Tile:
    """What to convolve at a time: all, if it fits. Other devices than CPUs were not measured."""
    batch, filters = input.shape[0], experts.shape[1]
    if input.device.type != "cpu":
        return Tile(batch, filters)
    filter_bytes = experts.shape[2:].numel() * input.element_size()
    kernel_bytes = filters * filter_bytes
    image_bytes = _image_bytes(input, experts, window)
    if batch * kernel_bytes <= most_kernel_bytes and batch * image_bytes <= _HEAP_BYTES:
        return Tile(batch, filters)
    if window.groups == 1 and kernel_bytes > image_bytes:
        room = _TILE_BYTES // (filter_bytes * min(batch, _SHARING))
        filters = _even_part(filters, room, _FILTERS_STEP)
    samples = _TILE_BYTES // max(filters * filter_bytes, image_bytes)
    return Tile(_even_part(batch, samples), filters)


def _even_part(length: int, most: int, step: int = 1) -> int:
    """The length of equal parts, a multiple of ``step`` up to ``most``, but at least one step."""
    parts = -(-length // max(most - most % step, step))
    return min(length, -(-length // (parts * step)) * step)


def _image_bytes(input: Tensor, experts: Tensor, window: Window) -> int:
    """The larger of a sample's input and output, where a form copies them; else 0."""
    kernel_height, kernel_width = experts.shape[3:]
    if _is_pointwise((kernel_height, kernel_width), window):
        return 0
    height, width = input.shape[2:]
    output_height, output_width = _output_size(input, experts, window)
    numbers = max(input.shape[1] * height * width, experts.shape[1] * output_height * output_width)
    return numbers * input.element_size()


def _output_size(input: Tensor, experts: Tensor, window: Window) -> Pair:
    kernel_size = (experts.shape[3], experts.shape[4])
    geometry = Geometry(kernel_size, window.stride, window.padding, window.dilation)
    return geometry.output_size(input.shape[2], input.shape[3])


# ---- the kernels


def _kernel_scale(factors: Factors, experts: Tensor, groups: int) -> Tensor | None:
    """The product of the factors, which broadcasts to (N, O, C / groups, Kh, Kw)."""
    _, filters, depth, height, width = experts.shape
    scale = None
    for factor, shape in (
        (factors.channels, (groups, 1, depth, 1, 1)),
        (factors.filters, (groups, filters // groups, 1, 1, 1)),
        (factors.taps, (1, 1, 1, height, width)),
    ):
        if factor is not None:
            shaped = factor.view(factor.shape[0], *shape)
            scale = shaped if scale is None else scale * shaped
    if scale is None:
        return None
    if factors.channels is None and factors.filters is None:
        return scale[:, 0]
    return scale.expand(-1, -1, filters // groups, -1, -1, -1).flatten(1, 2)


def _mix(experts: Tensor, mixture: Tensor, scale: Tensor | None) -> Tensor:
    """The kernels of all samples, (N, O, C / groups, Kh, Kw)."""
    return _scaled(_mix_experts(experts, mixture), scale)


def _mix_experts(experts: Tensor, mixture: Tensor) -> Tensor:
    return mix(experts.flatten(1), mixture).view(mixture.shape[0], *experts.shape[1:])


def _scaled(kernels: Tensor, scale: Tensor | None) -> Tensor:
    return kernels if scale is None else kernels * scale


# ---- the convolution


def _convolve(input: Tensor, kernels: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    if _is_pointwise(kernels.shape[3:], window):
        return _pointwise(input, kernels, bias)
    if not _is_channels_last(input) or is_transformed():  # vmap knows no layouts
        return _grouped(input, kernels, bias, window)
    if not is_compiling() and _are_kernels_smaller(input, kernels):
        # Pixels that a stride has picked are apart.
        input = input.contiguous(memory_format=torch.channels_last)
        return _one_by_one(input, kernels, bias, window)
    # The kernels, which are larger, would be copied for an input that is not contiguous.
    output = _grouped(input.contiguous(), kernels, bias, window)
    return output.contiguous(memory_format=torch.channels_last)


def _is_pointwise(kernel_size: tuple[int, ...], window: Window) -> bool:
    return (
        kernel_size == (1, 1)
        and window.stride == (1, 1)
        and window.padding == (0, 0)
        and window.groups == 1
    )


def _is_channels_last(image: Tensor) -> bool:
    return image.stride(1) == 1 and not image.is_contiguous()


def _pointwise(input: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
    batch, _, height, width = input.shape
    pixels, matrices = input.flatten(2), kernels.flatten(2)
    if _is_channels_last(input):
        output = _product(pixels.mT, matrices.mT, None if bias is None else bias[:, None])
        return output.view(batch, height, width, kernels.shape[1]).permute(0, 3, 1, 2)
    output = _product(matrices, pixels, None if bias is None else bias[:, :, None])
    return output.view(batch, kernels.shape[1], height, width)


def _product(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    return torch.bmm(left, right) if bias is None else torch.baddbmm(bias, left, right)


def _grouped(input: Tensor, kernels: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    batch, channels_out = kernels.shape[:2]
    output = F.conv2d(
        input if batch == 1 else _side_by_side(input),
        kernels.flatten(0, 1),
        None if bias is None else bias.flatten(),
        window.stride,
        window.padding,
        window.dilation,
        window.groups * batch,
    )
    return output if batch == 1 else output.reshape(batch, channels_out, *output.shape[2:])


def _one_by_one(input: Tensor, kernels: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    biases = [None] * len(kernels) if bias is None else bias.unbind()
    return torch.cat(
        [
            F.conv2d(image, kernel, own_bias, *window)
            for image, kernel, own_bias in zip(
                input.split(1), kernels.unbind(), biases, strict=True
            )
        ]
    )


def _side_by_side(images: Tensor) -> Tensor:
    batch, channels, height, width = images.shape
    return images.reshape(1, batch * channels, height, width)


def _patches(
    input: Tensor, experts: Tensor, kernels: Tensor, bias: Tensor | None, window: Window
) -> Tensor:
    stride, padding, dilation, groups = window
    # The experts' shape is constant in an exported graph; the kernels' has the batch in it.
    channels, depth, height, width = experts.shape[1:]
    columns = F.unfold(input, (height, width), dilation, padding, stride)
    columns = columns.unflatten(1, (groups, depth * height * width))
    matrices = kernels.flatten(2).unflatten(1, (groups, channels // groups))
    # With the input's own sizes: ONNX's exporter takes those of an unflatten for constants.
    size = _output_size(input, experts, window)
    output = (matrices @ columns).reshape(input.shape[0], channels, *size)
    return _add_bias(output, bias)


# ---- the form that keeps no kernels


class _Operands(NamedTuple):
    """What is convolved, or its gradients: shapes as :func:`_convolve_mixed` takes them."""

    input: Tensor
    experts: Tensor
    mixture: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def part(self, samples: slice, filters: slice) -> _Operands:
        """What makes these output channels of these samples, as views."""
        input, experts, mixture, scale, bias = self
        if scale is not None:
            scale = scale[samples] if scale.shape[1] == 1 else scale[samples, filters]
        bias = None if bias is None else bias[samples, filters]
        return _Operands(input[samples], experts[:, filters], mixture[samples], scale, bias)

    def gradients(self) -> _Operands:
        """Tensors to sum up the gradients in, not initialised; bias has none."""
        input, experts, mixture, scale, _ = self
        dtype = accumulation_dtype(input.dtype)
        return _Operands(
            torch.empty_like(input, dtype=dtype),
            # Contiguous, whatever the experts are: it is filled through flat views of its parts.
            experts.new_empty(experts.shape, dtype=dtype),
            mixture.new_empty(mixture.shape, dtype=dtype),
            None if scale is None else scale.new_empty(scale.shape, dtype=dtype),
            None,
        )


class _InTiles(torch.autograd.Function):
    """Mixes and convolves a tile of samples and filters at a time, in the backward pass as well."""

    @staticmethod
    def forward(
        input: Tensor,
        experts: Tensor,
        mixture: Tensor,
        scale: Tensor | None,
        bias: Tensor | None,
        window: Window,
        tile: Tile,
        learnt_tile: Tile,
    ) -> Tensor:
        operands = _Operands(input, experts, mixture, scale, bias)
        output = _empty_output(input, experts, window)
        for samples, filters in _tiles(operands, tile):
            own = operands.part(samples, filters)
            kernels = _mix(own.experts, own.mixture, own.scale)
            output[samples, filters] = _convolve(own.input, kernels, own.bias, window)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:5])
        ctx.window, _, ctx.tile = inputs[5:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        records = torch.is_grad_enabled() or is_batched(grad)
        gradients = _differentiable_gradients if records else _gradients
        return *gradients(ctx, grad, _Operands(*ctx.saved_tensors)), None, None, None


def _tiles(operands: _Operands, tile: Tile) -> Iterator[tuple[slice, slice]]:
    """The samples and the filters of each tile; those of the same filters follow each other."""
    for filters in _ranges(operands.experts.shape[1], tile.filters):
        for samples in _ranges(len(operands.input), tile.samples):
            yield samples, filters


def _ranges(length: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, length, step))


def _empty_output(input: Tensor, experts: Tensor, window: Window) -> Tensor:
    size = _output_size(input, experts, window)
    layout = torch.channels_last if _is_channels_last(input) else torch.contiguous_format
    return torch.empty(
        (len(input), experts.shape[1], *size),
        dtype=input.dtype,
        device=input.device,
        memory_format=layout,
    )


def _differentiable_gradients(ctx: Any, grad: Tensor, operands: _Operands) -> list[Tensor | None]:
    """The gradients that a second derivative is asked of: autograd records them."""
    # Views, because the mixture may itself depend on the input: that is not for here to follow.
    with torch.enable_grad():
        views = _Operands._make(None if each is None else each.view_as(each) for each in operands)
        output = _convolve(
            views.input, _mix(views.experts, views.mixture, views.scale), views.bias, ctx.window
        )
    is_needed = ctx.needs_input_grad[: len(views)]
    needed = [
        view for view, needs in zip(views, is_needed, strict=True) if needs and view is not None
    ]
    found = iter(torch.autograd.grad(output, needed, grad, create_graph=True))
    return [next(found) if needs else None for needs in is_needed]


def _gradients(ctx: Any, grad: Tensor, operands: _Operands) -> list[Tensor | None]:
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
    input, experts, mixture, scale, _ = operands
    mixed = _mix_experts(experts, mixture)
    grad_input, grad_kernels = _convolution_gradients(grad, input, _scaled(mixed, scale), ctx)
    if grad_input is not None:
        _add(grad_input, sums.input, is_first=are_first_filters)
    if scale is not None and sums.scale is not None:
        grad_scale = (grad_kernels * mixed).sum_to_size(scale.shape)
        _add(grad_scale, sums.scale, is_first=are_first_filters or scale.shape[1] > 1)
    grad_mixture = mix_gradients(
        _scaled(grad_kernels, scale).flatten(1),
        experts.flatten(1),
        mixture,
        out=sums.experts.flatten(1),
        adds=not are_first_samples,
    )
    _add(grad_mixture, sums.mixture, is_first=are_first_filters)


def _add(part: Tensor, total: Tensor, *, is_first: bool) -> None:
    total.copy_(part) if is_first else total.add_(part)


def _convolution_gradients(
    grad: Tensor, input: Tensor, kernels: Tensor, ctx: Any
) -> tuple[Tensor | None, Tensor]:
    """The gradients of the input, where it is needed, and of the kernels."""
    if _is_pointwise(kernels.shape[3:], ctx.window):
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
