"""Involution and its two gradients as Triton kernels.

Each program computes a tile of ``TILE_CHANNELS`` channels of one group by ``TILE_PIXELS`` pixels of one
image. Tensors are addressed by their strides, so every memory format is read in place. Sums
accumulate in ``ACCUMULATOR``. Offsets within an image have 64 bits where ``WIDE`` is set; the offset
of an image within its batch always has.

Importing this module imports Triton, so the backend does it when the first tensor arrives.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(
    blocks_of_pixels: tl.tensor, blocks_of_channels: tl.tensor, groups: tl.tensor
) -> tl.tuple:
    """Image, group, channel block and pixel block of this program; pixels vary fastest."""
    program = tl.program_id(0)
    pixel_block = program % blocks_of_pixels
    rest = program // blocks_of_pixels
    channel_block = rest % blocks_of_channels
    rest = rest // blocks_of_channels
    return (rest // groups).to(tl.int64), rest % groups, channel_block, pixel_block


@triton.jit
def _widened(index: tl.tensor, WIDE: tl.constexpr) -> tl.tensor:
    return index.to(tl.int64) if WIDE else index


@triton.jit
def forward(
    input: tl.tensor,
    weight: tl.tensor,
    output: tl.tensor,
    input_strides: tl.tuple,
    weight_strides: tl.tuple,
    output_strides: tl.tuple,
    group_channels: tl.tensor,
    groups: tl.tensor,
    input_size: tl.tuple,
    output_size: tl.tuple,
    stride: tl.tuple,
    padding: tl.tuple,
    dilation: tl.tuple,
    KERNEL_HEIGHT: tl.constexpr,
    KERNEL_WIDTH: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,
    TILE_PIXELS: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """``output[n, c, p] = sum over taps of weight[n, g(c), tap, p] * input[n, c, read(p, tap)]``."""
    pixels = output_size[0] * output_size[1]
    image, group, channel_block, pixel_block = _tile(
        tl.cdiv(pixels, TILE_PIXELS), tl.cdiv(group_channels, TILE_CHANNELS), groups
    )
    channel = channel_block * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)
    pixel = pixel_block * TILE_PIXELS + tl.arange(0, TILE_PIXELS)
    row, column = pixel // output_size[1], pixel % output_size[1]
    is_channel, is_pixel = channel < group_channels, pixel < pixels
    channel = _widened(group * group_channels + channel, WIDE)
    top = row * stride[0] - padding[0]
    left = column * stride[1] - padding[1]
    input += image * input_strides[0]
    weight += image * weight_strides[0] + _widened(group, WIDE) * weight_strides[1]
    weight_pixel = (
        _widened(row, WIDE) * weight_strides[4] + _widened(column, WIDE) * weight_strides[5]
    )
    total = tl.zeros((TILE_CHANNELS, TILE_PIXELS), ACCUMULATOR)
    for kernel_row in range(KERNEL_HEIGHT):
        y = top + kernel_row * dilation[0]
        for kernel_column in range(KERNEL_WIDTH):
            x = left + kernel_column * dilation[1]
            is_inside = is_pixel & (y >= 0) & (y < input_size[0]) & (x >= 0) & (x < input_size[1])
            tap = kernel_row * weight_strides[2] + kernel_column * weight_strides[3]
            factor = tl.load(weight + tap + weight_pixel, mask=is_inside, other=0.0)
            read = _widened(y, WIDE) * input_strides[2] + _widened(x, WIDE) * input_strides[3]
            value = tl.load(
                input + channel[:, None] * input_strides[1] + read[None, :],
                mask=is_channel[:, None] & is_inside[None, :],
                other=0.0,
            )
            total += factor.to(ACCUMULATOR)[None, :] * value.to(ACCUMULATOR)
    written = _widened(row, WIDE) * output_strides[2] + _widened(column, WIDE) * output_strides[3]
    output += image * output_strides[0]
    tl.store(
        output + channel[:, None] * output_strides[1] + written[None, :],
        total.to(output.dtype.element_ty),
        mask=is_channel[:, None] & is_pixel[None, :],
    )


@triton.jit
def grad_input(
    grad_output: tl.tensor,
    weight: tl.tensor,
    grad_input: tl.tensor,
    grad_strides: tl.tuple,
    weight_strides: tl.tuple,
    input_strides: tl.tuple,
    group_channels: tl.tensor,
    groups: tl.tensor,
    input_size: tl.tuple,
    output_size: tl.tuple,
    stride: tl.tuple,
    padding: tl.tuple,
    dilation: tl.tuple,
    KERNEL_HEIGHT: tl.constexpr,
    KERNEL_WIDTH: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,
    TILE_PIXELS: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """Gathers, for each input pixel, the gradients of the output pixels that read it."""
    pixels = input_size[0] * input_size[1]
    image, group, channel_block, pixel_block = _tile(
        tl.cdiv(pixels, TILE_PIXELS), tl.cdiv(group_channels, TILE_CHANNELS), groups
    )
    channel = channel_block * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)
    pixel = pixel_block * TILE_PIXELS + tl.arange(0, TILE_PIXELS)
    row, column = pixel // input_size[1], pixel % input_size[1]
    is_channel, is_pixel = channel < group_channels, pixel < pixels
    channel = _widened(group * group_channels + channel, WIDE)
    grad_output += image * grad_strides[0]
    weight += image * weight_strides[0] + _widened(group, WIDE) * weight_strides[1]
    total = tl.zeros((TILE_CHANNELS, TILE_PIXELS), ACCUMULATOR)
    for kernel_row in range(KERNEL_HEIGHT):
        down = row + padding[0] - kernel_row * dilation[0]
        y = down // stride[0]
        reads_row = is_pixel & (down >= 0) & (down % stride[0] == 0) & (y < output_size[0])
        for kernel_column in range(KERNEL_WIDTH):
            right = column + padding[1] - kernel_column * dilation[1]
            x = right // stride[1]
            reads = reads_row & (right >= 0) & (right % stride[1] == 0) & (x < output_size[1])
            y_offset, x_offset = _widened(y, WIDE), _widened(x, WIDE)
            tap = kernel_row * weight_strides[2] + kernel_column * weight_strides[3]
            factor = tl.load(
                weight + tap + y_offset * weight_strides[4] + x_offset * weight_strides[5],
                mask=reads,
                other=0.0,
            )
            read = y_offset * grad_strides[2] + x_offset * grad_strides[3]
            value = tl.load(
                grad_output + channel[:, None] * grad_strides[1] + read[None, :],
                mask=is_channel[:, None] & reads[None, :],
                other=0.0,
            )
            total += factor.to(ACCUMULATOR)[None, :] * value.to(ACCUMULATOR)
    written = _widened(row, WIDE) * input_strides[2] + _widened(column, WIDE) * input_strides[3]
    grad_input += image * input_strides[0]
    tl.store(
        grad_input + channel[:, None] * input_strides[1] + written[None, :],
        total.to(grad_input.dtype.element_ty),
        mask=is_channel[:, None] & is_pixel[None, :],
    )


@triton.jit
def grad_weight(
    grad_output: tl.tensor,
    input: tl.tensor,
    grad_weight: tl.tensor,
    grad_strides: tl.tuple,
    input_strides: tl.tuple,
    weight_strides: tl.tuple,
    group_channels: tl.tensor,
    groups: tl.tensor,
    input_size: tl.tuple,
    output_size: tl.tuple,
    stride: tl.tuple,
    padding: tl.tuple,
    dilation: tl.tuple,
    KERNEL_HEIGHT: tl.constexpr,
    KERNEL_WIDTH: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,
    TILE_PIXELS: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """``grad_weight[n, g, tap, p] = sum over g's channels of grad_output[p] * input[read(p, tap)]``."""
    pixels = output_size[0] * output_size[1]
    image, group, _, pixel_block = _tile(tl.cdiv(pixels, TILE_PIXELS), 1, groups)
    pixel = pixel_block * TILE_PIXELS + tl.arange(0, TILE_PIXELS)
    row, column = pixel // output_size[1], pixel % output_size[1]
    is_pixel = pixel < pixels
    top = row * stride[0] - padding[0]
    left = column * stride[1] - padding[1]
    grad_output += image * grad_strides[0]
    input += image * input_strides[0]
    grad_weight += image * weight_strides[0] + _widened(group, WIDE) * weight_strides[1]
    grad_pixel = _widened(row, WIDE) * grad_strides[2] + _widened(column, WIDE) * grad_strides[3]
    weight_pixel = (
        _widened(row, WIDE) * weight_strides[4] + _widened(column, WIDE) * weight_strides[5]
    )
    for kernel_row in range(KERNEL_HEIGHT):
        y = top + kernel_row * dilation[0]
        for kernel_column in range(KERNEL_WIDTH):
            x = left + kernel_column * dilation[1]
            is_inside = is_pixel & (y >= 0) & (y < input_size[0]) & (x >= 0) & (x < input_size[1])
            read = _widened(y, WIDE) * input_strides[2] + _widened(x, WIDE) * input_strides[3]
            total = tl.zeros((TILE_PIXELS,), ACCUMULATOR)
            for start in range(0, group_channels, TILE_CHANNELS):
                channel = start + tl.arange(0, TILE_CHANNELS)
                mask = (channel < group_channels)[:, None] & is_inside[None, :]
                channel = _widened(group * group_channels + channel, WIDE)
                grad = tl.load(
                    grad_output + channel[:, None] * grad_strides[1] + grad_pixel[None, :],
                    mask=mask,
                    other=0.0,
                )
                value = tl.load(
                    input + channel[:, None] * input_strides[1] + read[None, :],
                    mask=mask,
                    other=0.0,
                )
                total += tl.sum(grad.to(ACCUMULATOR) * value.to(ACCUMULATOR), axis=0)
            tap = kernel_row * weight_strides[2] + kernel_column * weight_strides[3]
            tl.store(
                grad_weight + tap + weight_pixel,
                total.to(grad_weight.dtype.element_ty),
                mask=is_pixel,
            )
