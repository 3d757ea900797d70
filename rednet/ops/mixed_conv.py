"""Convolution of each sample with a kernel of its own, mixed from experts that all samples share.

There is one definition and several forms of it; ``mixed_conv2d`` chooses:

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

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rednet.ops.autocast import autocast_dtype
from rednet.ops.dtypes import accumulation_dtype
from rednet.ops.geometry import Geometry, Pair
from rednet.ops.tracing import is_compiling, is_exporting, is_transformed

# glibc serves tensors of 32 MiB and more with fresh pages each time, whose first touch is slow. Of
# kernels the convolution makes a copy as large, and no more of the two together stays in the heap.
_WHOLE_IMAGES_BYTES = 31 * 2**20
_WHOLE_KERNELS_BYTES = 15 * 2**20
# Beyond that, tiles whose tensors stay in the cache, with room for the convolution's own copies.
_TILE_BYTES = 12 * 2**20
# So many samples share a reading of the experts, where a tile has room for their kernels.
_SHARING = 16
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


def mixed_conv2d(
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
    if input.shape[0] == 1 or is_compiling() or is_transformed():
        return _convolve(input, _mix(experts, mixture, scale), bias, window)
    tile = _tile(input, experts, window)
    if tile == (input.shape[0], experts.shape[1]):
        return _convolve(input, _mix(experts, mixture, scale), bias, window)
    return _InTiles.apply(*_autocast(input, experts, mixture, scale, bias), window, tile)


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


def _tile(input: Tensor, experts: Tensor, window: Window) -> Tile:
    """What to convolve at a time: all, if it fits. Other devices than CPUs were not measured."""
    batch, filters = input.shape[0], experts.shape[1]
    if input.device.type != "cpu":
        return Tile(batch, filters)
    filter_bytes = experts.shape[2:].numel() * input.element_size()
    kernel_bytes = filters * filter_bytes
    image_bytes = _image_bytes(input, experts, window)
    if batch * kernel_bytes <= _WHOLE_KERNELS_BYTES and batch * image_bytes <= _WHOLE_IMAGES_BYTES:
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
    geometry = Geometry(
        (kernel_height, kernel_width), window.stride, window.padding, window.dilation
    )
    output_height, output_width = geometry.output_size(height, width)
    numbers = max(input.shape[1] * height * width, experts.shape[1] * output_height * output_width)
    return numbers * input.element_size()


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
    return torch.mm(mixture, experts.flatten(1)).view(mixture.shape[0], *experts.shape[1:])


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
    geometry = Geometry((height, width), stride, padding, dilation)
    size = geometry.output_size(input.shape[2], input.shape[3])
    # With the input's own sizes: ONNX's exporter takes those of an unflatten for constants.
    output = (matrices @ columns).reshape(input.shape[0], channels, *size)
    return _add_bias(output, bias)


# ---- the form that keeps no kernels


class _Operands(NamedTuple):
    """What is convolved: shapes as :func:`_convolve_mixed` takes them."""

    input: Tensor
    experts: Tensor
    mixture: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def of_filters(self, filters: slice) -> _Operands:
        """The part that makes these output channels; of a scale that all share, the whole."""
        scale, bias = self.scale, self.bias
        return self._replace(
            experts=self.experts[:, filters],
            scale=scale if scale is None or scale.shape[1] == 1 else scale[:, filters],
            bias=None if bias is None else bias[:, filters],
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
    ) -> Tensor:
        operands, columns = _Operands(input, experts, mixture, scale, bias), []
        for filters in _ranges(experts.shape[1], tile.filters):
            own = operands.of_filters(filters)
            rows = [
                _convolve(images, _mix(own.experts, shares, factor), summand, window)
                for images, shares, factor, summand in _split(
                    tile.samples, own.input, own.mixture, own.scale, own.bias
                )
            ]
            columns.append(torch.cat(rows))
        return torch.cat(columns, dim=1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:5])
        ctx.window, ctx.tile = inputs[5:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = _differentiable_gradients if torch.is_grad_enabled() else _gradients
        return *gradients(ctx, grad, _Operands(*ctx.saved_tensors)), None, None


def _ranges(length: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, length, step))


def _split(size: int, *tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    batch = next(len(tensor) for tensor in tensors if tensor is not None)
    for samples in _ranges(batch, size):
        yield tuple(None if each is None else each[samples] for each in tensors)


def _differentiable_gradients(ctx: Any, grad: Tensor, operands: _Operands) -> list[Tensor | None]:
    """The gradients that a second derivative is asked of: autograd records them."""
    # Views, because the mixture may itself depend on the input: that is not for here to follow.
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


def _gradients(ctx: Any, grad: Tensor, operands: _Operands) -> tuple[Tensor | None, ...]:
    experts, scale = operands.experts, operands.scale
    # Contiguous, whatever the experts are: it is filled through flat views of its parts.
    grad_experts = experts.new_empty(experts.shape, dtype=accumulation_dtype(experts.dtype))
    parts = [
        _gradients_of_filters(
            ctx, grad[:, filters], operands.of_filters(filters), out=grad_experts[:, filters]
        )
        for filters in _ranges(experts.shape[1], ctx.tile.filters)
    ]
    grad_inputs, grad_mixtures, grad_scales = zip(*parts, strict=True)
    grad_scale = None
    if scale is not None:
        grad_scale = _sum(grad_scales) if scale.shape[1] == 1 else torch.cat(grad_scales, 1)
    grad_input = _sum(grad_inputs) if ctx.needs_input_grad[0] else None
    grad_bias = None if operands.bias is None else grad.sum((2, 3))
    return grad_input, grad_experts.to(experts.dtype), _sum(grad_mixtures), grad_scale, grad_bias


def _gradients_of_filters(
    ctx: Any, grad: Tensor, operands: _Operands, out: Tensor
) -> list[Tensor | None]:
    """The gradients of input, mixture and scale; that of the experts goes to ``out``."""
    input, experts, mixture, scale, _ = operands
    rows, out = experts.flatten(1), out.flatten(1)
    grads_of_samples: list[tuple[Tensor | None, ...]] = []
    for grads, images, shares, factor in _split(ctx.tile.samples, grad, input, mixture, scale):
        mixed = _mix_experts(experts, shares)
        grad_images, grad_kernels = _convolution_gradients(
            grads, images, _scaled(mixed, factor), ctx
        )
        grad_factor = None
        if factor is not None:
            grad_factor = (grad_kernels * mixed).sum_to_size(factor.shape)
        grad_mixed = _scaled(grad_kernels, factor).flatten(1)
        is_first = not grads_of_samples  # beta=0: out is not initialised
        out.addmm_(shares.t().to(out.dtype), grad_mixed.to(out.dtype), beta=0 if is_first else 1)
        grads_of_samples.append((grad_images, grad_mixed @ rows.t(), grad_factor))
    return [
        None if parts[0] is None else torch.cat(parts)
        for parts in zip(*grads_of_samples, strict=True)
    ]


def _sum(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).sum(0)


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
