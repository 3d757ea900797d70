"""Convolution of each sample with its own kernel, in several forms.

``convolve`` chooses among the first three by shape and memory format:

- ``_pointwise``: a 1 x 1 kernel without groups is a batched matrix product.
- ``convolve_grouped``: the samples become the groups of one convolution, as in the published code.
- ``convolve_one_by_one``: a convolution for each sample, for channels_last images on a CPU that are
  larger than their kernels. As groups of one convolution they would be copied, and copied back.
- ``convolve_patches``: unfolded patches times kernels, for export: nothing in its graph depends on
  the batch size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rednet.ops.expert_conv.problem import Window, output_size
from rednet.ops.tracing import is_compiling, is_transformed


def convolve(input: Tensor, kernels: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    """Convolves each sample of (N, C, H, W) with its kernels, (N, O, C / groups, Kh, Kw)."""
    if is_pointwise(kernels.shape[3:], window):
        return _pointwise(input, kernels, bias)
    if not is_channels_last(input) or is_transformed():  # vmap knows no layouts
        return convolve_grouped(input, kernels, bias, window)
    if not is_compiling() and are_kernels_smaller(input, kernels):
        # Pixels that a stride has picked are apart.
        input = input.contiguous(memory_format=torch.channels_last)
        return convolve_one_by_one(input, kernels, bias, window)
    # The kernels, which are larger, would be copied for an input that is not contiguous.
    output = convolve_grouped(input.contiguous(), kernels, bias, window)
    return output.contiguous(memory_format=torch.channels_last)


def are_kernels_smaller(input: Tensor, kernels: Tensor) -> bool:
    """Whether a sample's kernel has fewer numbers than its image, on a CPU.

    Then it is the kernel that is multiplied with the factors of the channels, and it costs little
    to convolve samples one by one. Other devices have not been measured.
    """
    filters, depth, height, width = kernels.shape[1:]
    pixels = input.shape[1] * input.shape[2] * input.shape[3]
    return input.device.type == "cpu" and filters * depth * height * width <= pixels


def is_pointwise(kernel_size: tuple[int, ...], window: Window) -> bool:
    """Whether a matrix product per sample computes the convolution."""
    return (
        kernel_size == (1, 1)
        and window.stride == (1, 1)
        and window.padding == (0, 0)
        and window.groups == 1
    )


def is_channels_last(image: Tensor) -> bool:
    """Whether the channels of an image are next to each other in memory."""
    return image.stride(1) == 1 and not image.is_contiguous()


def layout(input: Tensor) -> torch.memory_format:
    """The memory format that the output of such an input has."""
    return torch.channels_last if is_channels_last(input) else torch.contiguous_format


def _pointwise(input: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
    batch, _, height, width = input.shape
    pixels, matrices = input.flatten(2), kernels.flatten(2)
    if is_channels_last(input):
        output = _product(pixels.mT, matrices.mT, None if bias is None else bias[:, None])
        return output.view(batch, height, width, kernels.shape[1]).permute(0, 3, 1, 2)
    output = _product(matrices, pixels, None if bias is None else bias[:, :, None])
    return output.view(batch, kernels.shape[1], height, width)


def _product(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    return torch.bmm(left, right) if bias is None else torch.baddbmm(bias, left, right)


def convolve_grouped(input: Tensor, kernels: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    """Convolves all samples as the groups of one image."""
    batch, channels_out = kernels.shape[:2]
    output = F.conv2d(
        input if batch == 1 else side_by_side(input),
        kernels.flatten(0, 1),
        None if bias is None else bias.flatten(),
        window.stride,
        window.padding,
        window.dilation,
        window.groups * batch,
    )
    return output if batch == 1 else output.reshape(batch, channels_out, *output.shape[2:])


def convolve_one_by_one(
    input: Tensor, kernels: Tensor, bias: Tensor | None, window: Window
) -> Tensor:
    """Convolves a sample after the other."""
    biases = [None] * len(kernels) if bias is None else bias.unbind()
    return torch.cat(
        [
            F.conv2d(image, kernel, own_bias, *window)
            for image, kernel, own_bias in zip(
                input.split(1), kernels.unbind(), biases, strict=True
            )
        ]
    )


def side_by_side(images: Tensor) -> Tensor:
    """Views (N, C, H, W) as one image of N * C channels, (1, N * C, H, W)."""
    batch, channels, height, width = images.shape
    return images.reshape(1, batch * channels, height, width)


def convolve_patches(
    input: Tensor, experts: Tensor, kernels: Tensor, bias: Tensor | None, window: Window
) -> Tensor:
    """Convolves by unfolded patches: no operator in its graph depends on the batch size."""
    stride, padding, dilation, groups = window
    # The experts' shape is constant in an exported graph; the kernels' has the batch in it.
    channels, depth, height, width = experts.shape[1:]
    columns = F.unfold(input, (height, width), dilation, padding, stride)
    # Reshaped, not unflattened, which ONNX knows from opset 13 on only.
    size, taps = output_size(input, experts, window), depth * height * width
    columns = columns.reshape(input.shape[0], groups, taps, size[0] * size[1])
    matrices = kernels.reshape(kernels.shape[0], groups, channels // groups, taps)
    output = (matrices @ columns).reshape(input.shape[0], channels, *size)
    return add_bias(output, bias)


def add_bias(output: Tensor, bias: Tensor | None) -> Tensor:
    """Adds a bias of each sample, (N, O)."""
    return output if bias is None else output + bias.to(output.dtype)[:, :, None, None]
