"""Involution and its two gradients as Triton kernels.

Each program computes ``TILE_CHANNELS`` channels of one group by ``TILE_PIXELS`` pixels of one
image. Tensors are addressed by their strides, so every memory format is read in place. Sums
accumulate in ``ACCUMULATOR``. The offset of an image in its batch has 64 bits; offsets within an
image have them where ``WIDE`` is set.

The kernels share these arguments: ``channels`` is (groups, channels of a group), ``input_size`` and
``output_size`` are (height, width), and ``window`` is (stride, padding, dilation), each a pair laid
out flat: six numbers.

Importing this module imports Triton, so the backend does it when the first tensor arrives.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile(
    pixels: tl.tensor,
    channels: tl.tuple,
    TILE_CHANNELS: tl.constexpr,
    TILE_PIXELS: tl.constexpr,
) -> tl.tuple:
    """Image, group, channels within the group and pixels of this program; pixels vary fastest."""
    blocks_of_pixels = tl.cdiv(pixels, TILE_PIXELS)
    blocks_of_channels = tl.cdiv(channels[1], TILE_CHANNELS)
    program = tl.program_id(0)
    rest = program // blocks_of_pixels
    image_and_group = rest // blocks_of_channels
    channel = rest % blocks_of_channels * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)
    pixel = program % blocks_of_pixels * TILE_PIXELS + tl.arange(0, TILE_PIXELS)
    image = (image_and_group // channels[0]).to(tl.int64)
    return image, image_and_group % channels[0], channel, pixel


@triton.jit
def widened(index: tl.tensor, WIDE: tl.constexpr) -> tl.tensor:
    """A part of an offset, in as many bits as offsets within an image need."""
    return index.to(tl.int64) if WIDE else index


@triton.jit
def pixel_offset(
    row: tl.tensor,
    column: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    WIDE: tl.constexpr,
) -> tl.tensor:
    """The offsets of pixels in their plane."""
    return widened(row, WIDE) * row_stride + widened(column, WIDE) * column_stride


@triton.jit
def addresses(
    plane: tl.tensor, channel: tl.tensor, channel_stride: tl.tensor, pixel_offset: tl.tensor
) -> tl.tensor:
    """Addresses of shape (channels, pixels)."""
    return plane + channel[:, None] * channel_stride + pixel_offset[None, :]


@triton.jit
def forward(
    input: tl.tensor,
    weight: tl.tensor,
    output: tl.tensor,
    input_strides: tl.tuple,
    weight_strides: tl.tuple,
    output_strides: tl.tuple,
    channels: tl.tuple,
    input_size: tl.tuple,
    output_size: tl.tuple,
    window: tl.tuple,
    KERNEL_HEIGHT: tl.constexpr,
    KERNEL_WIDTH: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,
    TILE_PIXELS: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """Sums, for each output pixel, what its kernel reads of the input."""
    pixels = output_size[0] * output_size[1]
    image, group, channel, pixel = tile(pixels, channels, TILE_CHANNELS, TILE_PIXELS)
    row, column = pixel // output_size[1], pixel % output_size[1]
    is_channel, is_pixel = (channel < channels[1])[:, None], pixel < pixels
    channel = widened(group * channels[1] + channel, WIDE)
    input += image * input_strides[0]
    weight += image * weight_strides[0] + widened(group, WIDE) * weight_strides[1]
    weight += pixel_offset(row, column, weight_strides[4], weight_strides[5], WIDE)
    total = tl.zeros((TILE_CHANNELS, TILE_PIXELS), ACCUMULATOR)
    for i in range(KERNEL_HEIGHT):
        y = row * window[0] - window[2] + i * window[4]
        is_row = is_pixel & (y >= 0) & (y < input_size[0])
        for j in range(KERNEL_WIDTH):
            x = column * window[1] - window[3] + j * window[5]
            is_read = is_row & (x >= 0) & (x < input_size[1])
            tap = i * weight_strides[2] + j * weight_strides[3]
            factor = tl.load(weight + tap, mask=is_read, other=0.0)
            offset = pixel_offset(y, x, input_strides[2], input_strides[3], WIDE)
            address = addresses(input, channel, input_strides[1], offset)
            value = tl.load(address, mask=is_channel & is_read[None, :], other=0.0)
            total += factor.to(ACCUMULATOR)[None, :] * value.to(ACCUMULATOR)
    offset = pixel_offset(row, column, output_strides[2], output_strides[3], WIDE)
    address = addresses(output + image * output_strides[0], channel, output_strides[1], offset)
    tl.store(address, total.to(output.dtype.element_ty), mask=is_channel & is_pixel[None, :])


@triton.jit
def grad_input(
    grad_output: tl.tensor,
    weight: tl.tensor,
    grad_input: tl.tensor,
    grad_strides: tl.tuple,
    weight_strides: tl.tuple,
    input_strides: tl.tuple,
    channels: tl.tuple,
    input_size: tl.tuple,
    output_size: tl.tuple,
    window: tl.tuple,
    KERNEL_HEIGHT: tl.constexpr,
    KERNEL_WIDTH: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,
    TILE_PIXELS: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """Sums, for each input pixel, over the output pixels that read it."""
    pixels = input_size[0] * input_size[1]
    image, group, channel, pixel = tile(pixels, channels, TILE_CHANNELS, TILE_PIXELS)
    row, column = pixel // input_size[1], pixel % input_size[1]
    is_channel, is_pixel = (channel < channels[1])[:, None], pixel < pixels
    channel = widened(group * channels[1] + channel, WIDE)
    grad_output += image * grad_strides[0]
    weight += image * weight_strides[0] + widened(group, WIDE) * weight_strides[1]
    total = tl.zeros((TILE_CHANNELS, TILE_PIXELS), ACCUMULATOR)
    for i in range(KERNEL_HEIGHT):
        down = row + window[2] - i * window[4]
        y = down // window[0]
        is_row = is_pixel & (down >= 0) & (down % window[0] == 0) & (y < output_size[0])
        for j in range(KERNEL_WIDTH):
            right = column + window[3] - j * window[5]
            x = right // window[1]
            is_read = is_row & (right >= 0) & (right % window[1] == 0) & (x < output_size[1])
            tap = i * weight_strides[2] + j * weight_strides[3]
            tap += pixel_offset(y, x, weight_strides[4], weight_strides[5], WIDE)
            factor = tl.load(weight + tap, mask=is_read, other=0.0)
            offset = pixel_offset(y, x, grad_strides[2], grad_strides[3], WIDE)
            address = addresses(grad_output, channel, grad_strides[1], offset)
            value = tl.load(address, mask=is_channel & is_read[None, :], other=0.0)
            total += factor.to(ACCUMULATOR)[None, :] * value.to(ACCUMULATOR)
    offset = pixel_offset(row, column, input_strides[2], input_strides[3], WIDE)
    address = addresses(grad_input + image * input_strides[0], channel, input_strides[1], offset)
    tl.store(address, total.to(grad_input.dtype.element_ty), mask=is_channel & is_pixel[None, :])


@triton.jit
def grad_weight(
    grad_output: tl.tensor,
    input: tl.tensor,
    grad_weight: tl.tensor,
    grad_strides: tl.tuple,
    input_strides: tl.tuple,
    weight_strides: tl.tuple,
    channels: tl.tuple,
    input_size: tl.tuple,
    output_size: tl.tuple,
    window: tl.tuple,
    KERNEL_HEIGHT: tl.constexpr,
    KERNEL_WIDTH: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,
    TILE_PIXELS: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """Sums, for each tap and output pixel, over the channels of the group, a tile at a time."""
    pixels = output_size[0] * output_size[1]
    image, group, _, pixel = tile(pixels, (channels[0], 1), TILE_CHANNELS, TILE_PIXELS)
    row, column = pixel // output_size[1], pixel % output_size[1]
    grad_output += image * grad_strides[0]
    input += image * input_strides[0]
    grad_weight += image * weight_strides[0] + widened(group, WIDE) * weight_strides[1]
    grad_weight += pixel_offset(row, column, weight_strides[4], weight_strides[5], WIDE)
    grad_offset = pixel_offset(row, column, grad_strides[2], grad_strides[3], WIDE)
    for i in range(KERNEL_HEIGHT):
        y = row * window[0] - window[2] + i * window[4]
        for j in range(KERNEL_WIDTH):
            x = column * window[1] - window[3] + j * window[5]
            is_read = (y >= 0) & (y < input_size[0]) & (x >= 0) & (x < input_size[1])
            is_read &= pixel < pixels
            offset = pixel_offset(y, x, input_strides[2], input_strides[3], WIDE)
            total = tl.zeros((TILE_PIXELS,), ACCUMULATOR)
            for start in range(0, channels[1], TILE_CHANNELS):
                channel = start + tl.arange(0, TILE_CHANNELS)
                mask = (channel < channels[1])[:, None] & is_read[None, :]
                channel = widened(group * channels[1] + channel, WIDE)
                address = addresses(grad_output, channel, grad_strides[1], grad_offset)
                grad = tl.load(address, mask=mask, other=0.0).to(ACCUMULATOR)
                address = addresses(input, channel, input_strides[1], offset)
                value = tl.load(address, mask=mask, other=0.0).to(ACCUMULATOR)
                total += tl.sum(grad * value, axis=0)
            tap = i * weight_strides[2] + j * weight_strides[3]
            result = total.to(grad_weight.dtype.element_ty)
            tl.store(grad_weight + tap, result, mask=pixel < pixels)
