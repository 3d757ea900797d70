"""Convolution of each sample with its own kernel, a mixture of experts that all samples share.

``expert_conv2d`` is the definition. How it is computed depends on the sizes:

| how | when |
|---|---|
| kernels for all samples, then a form of ``forms.py`` | small batches; while a compiler records |
| products of blocks (``products.py``) | many more filters than output pixels, on a CPU |
| in tiles (``tiled.py``) | large batches on a CPU: up to three times as fast, less memory |
| patches | export, where nothing may depend on the batch size |

The order of summation is all that differs, so an image's output agrees to rounding from batch to
batch. docs/results/layers.md has the measurements.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rednet.ops.autocast import autocast_dtype
from rednet.ops.expert_conv.forms import (
    add_bias,
    are_kernels_smaller,
    convolve,
    convolve_patches,
)
from rednet.ops.expert_conv.kernels import kernel_scale, mix_kernels
from rednet.ops.expert_conv.problem import Factors, Window
from rednet.ops.expert_conv.products import gains_by_products
from rednet.ops.expert_conv.tiled import convolve_in_tiles
from rednet.ops.expert_conv.tiles import FORWARD_BYTES, TRAINING_BYTES, tile_size
from rednet.ops.tracing import is_compiling, is_exporting, is_transformed


def expert_conv2d(
    input: Tensor,
    experts: Tensor,
    routing: Tensor,
    bias: Tensor | None = None,
    factors: Factors = Factors(),  # noqa: B008  (immutable)
    window: Window = Window(),  # noqa: B008
) -> Tensor:
    r"""Convolves sample n with ``factors[n] * sum over k of routing[n, k] * experts[k]``.

    Differentiable twice. It is for layers, which have checked their input; it checks nothing again.

    Args:
        input: Shape (N, C, H, W).
        experts: Shape (K, O, C / groups, Kh, Kw).
        routing: Shape (N, K), the share of each expert in each sample's kernel.
        bias: Shape (N, O), added to the output.
        factors: Factors along the kernels' dimensions.
        window: Stride, padding with zeros, dilation and groups.

    Returns:
        Shape (N, O, Ho, Wo), of the input's memory format.
    """
    channels, filters, taps = factors
    if channels is None and filters is None and taps is None:
        return _convolve_experts(input, experts, routing, None, bias, window)
    if are_kernels_smaller(input, experts):
        scale = kernel_scale(factors, experts, window.groups)
        return _convolve_experts(input, experts, routing, scale, bias, window)
    if channels is not None:
        input = input * channels[:, :, None, None]
    scale = kernel_scale(Factors(taps=taps), experts, window.groups)
    if filters is None:
        return _convolve_experts(input, experts, routing, scale, bias, window)
    output = _convolve_experts(input, experts, routing, scale, None, window)
    # Autocast leaves products and sums of tensors alone.
    output = output * filters.to(output.dtype)[:, :, None, None]
    return add_bias(output, bias)


def _convolve_experts(
    input: Tensor,
    experts: Tensor,
    routing: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    window: Window,
) -> Tensor:
    """Chooses the form; ``scale`` broadcasts to (N, O, C / groups, Kh, Kw)."""
    if input.shape[0] == 0 or is_exporting():
        return convolve_patches(input, experts, mix_kernels(experts, routing, scale), bias, window)
    if experts.shape[3:] == (1, 1) and window.padding == (0, 0) and window.stride != (1, 1):
        input = input[:, :, :: window.stride[0], :: window.stride[1]]
        window = window._replace(stride=(1, 1))
    if input.shape[0] == 1 or is_compiling() or is_transformed():
        return convolve(input, mix_kernels(experts, routing, scale), bias, window)
    training_tile = tile_size(input, experts, window, TRAINING_BYTES)
    is_whole = training_tile == (input.shape[0], experts.shape[1])
    if is_whole and not gains_by_products(input, experts, routing, scale, bias, window):
        return convolve(input, mix_kernels(experts, routing, scale), bias, window)
    tile = tile_size(input, experts, window, FORWARD_BYTES)
    input, experts, routing, scale, bias = _autocast(input, experts, routing, scale, bias)
    return convolve_in_tiles(input, experts, routing, scale, bias, window, tile, training_tile)


def _autocast(input: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """Casts tensors as autocast casts those of a convolution."""
    dtype = autocast_dtype(input.device.type)
    if dtype is None or input.dtype == torch.float64:
        return (input, *others)
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in (input, *others))
