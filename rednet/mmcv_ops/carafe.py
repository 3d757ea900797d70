"""CARAFE, upsampling by kernels that are generated at each pixel.

From `CARAFE: Content-Aware ReAssembly of FEatures <https://arxiv.org/abs/1905.02188>`_.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from rednet.mmcv_ops.autograd import at_least_float32, gradients


def carafe_naive_forward(
    features: Tensor,
    masks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Fills the output with the reassembled features.

    Args:
        features: Shape (N, C, H, W).
        masks: Kernels, shape (N, group_size * kernel_size ** 2, H * scale_factor,
            W * scale_factor).
        output: Shape (N, C, H * scale_factor, W * scale_factor).
        kernel_size: Rows and columns of a kernel, odd.
        group_size: Groups of channels that share a kernel.
        scale_factor: Output pixels in an input pixel along each side.
    """
    values, kernels = at_least_float32(features, masks)
    output.copy_(_reassemble(values, kernels, kernel_size, group_size, scale_factor))


def carafe_naive_backward(
    grad_output: Tensor,
    features: Tensor,
    masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Fills ``grad_input`` and ``grad_masks``, of the shapes of ``features`` and ``masks``."""
    grad, values, kernels = at_least_float32(grad_output, features, masks)

    def reassembled(values: Tensor, kernels: Tensor) -> Tensor:
        return _reassemble(values, kernels, kernel_size, group_size, scale_factor)

    results = gradients(reassembled, [values, kernels], grad)
    grad_input.copy_(results[0])
    grad_masks.copy_(results[1])


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    features_buffer: Tensor,
    output_buffer: Tensor,
    masks_buffer: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Fills the output; the buffers are of mmcv's kernels, which work in another layout.

    mmcv keeps ``features_buffer`` for the backward pass, so it gets the features.
    """
    features_buffer.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    grad_output: Tensor,
    features_buffer: Tensor,
    masks: Tensor,
    grad_output_buffer: Tensor,
    grad_input_hs_buffer: Tensor,
    grad_input_buffer: Tensor,
    grad_masks_buffer: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Fills ``grad_input`` and ``grad_masks`` from what :func:`carafe_forward` has kept."""
    carafe_naive_backward(
        grad_output,
        features_buffer,
        masks,
        grad_input,
        grad_masks,
        kernel_size,
        group_size,
        scale_factor,
    )


def _reassemble(
    features: Tensor, masks: Tensor, kernel_size: int, groups: int, scale: int
) -> Tensor:
    batch, channels, height, width = features.shape
    radius = (kernel_size - 1) // 2
    padded = F.pad(features, (radius, radius, radius, radius))
    # Pixels that share an input pixel come last, so that the input is read once for all of them.
    kernels = masks.view(batch, groups, 1, kernel_size, kernel_size, height, scale, width, scale)
    kernels = kernels.transpose(6, 7)  # (..., height, width, scale, scale)
    total = features.new_zeros(batch, groups, channels // groups, height, width, scale, scale)
    for row in range(kernel_size):
        for column in range(kernel_size):
            window = padded[:, :, row : row + height, column : column + width]
            pixels = window.unflatten(1, (groups, channels // groups))[..., None, None]
            total = total + pixels * kernels[:, :, :, row, column]
    upsampled = total.transpose(4, 5)  # (..., height, scale, width, scale)
    return upsampled.reshape(batch, channels, height * scale, width * scale)
