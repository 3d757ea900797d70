"""Bilinear samples of regions of interest, in a grid inside each bin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Chunks of regions hold at most this many samples, which bounds the memory.
_SAMPLES_AT_ONCE = 2**24


class Regions(NamedTuple):
    """Regions on a feature map, in its pixels.

    Attributes:
        image: Index of the image, shape (R,).
        start: Upper left corner (y, x), shape (R, 2).
        extent: Height and width, shape (R, 2).
    """

    image: Tensor
    start: Tensor
    extent: Tensor

    @classmethod
    def read(cls, rois: Tensor, scale: float, aligned: bool) -> Regions:
        """Reads mmcv's regions, (R, 5): image index, x1, y1, x2, y2 in image pixels.

        Args:
            rois: The regions.
            scale: Pixels of the feature map in a pixel of the image.
            aligned: Whether pixel centers lie at half-integer coordinates. If not, a region has at
                least one pixel in each direction.
        """
        start = rois[:, [2, 1]] * scale
        end = rois[:, [4, 3]] * scale
        if aligned:
            return cls(rois[:, 0].long(), start - 0.5, end - start)
        return cls(rois[:, 0].long(), start, (end - start).clamp(min=1))


def grid_groups(
    regions: Regions, bins: tuple[int, int], sampling_ratio: int, channels: int
) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """Groups regions that have the same number of samples in a bin.

    Args:
        regions: The regions.
        bins: Rows and columns of bins.
        sampling_ratio: Samples in a bin along each side; 0 for one per pixel.
        channels: Channels that are sampled, to bound the memory of a group.

    Yields:
        Indices of regions, and the rows and columns of samples in each of their bins.
    """
    if sampling_ratio > 0:
        sizes = torch.full_like(regions.extent, sampling_ratio, dtype=torch.long)
    else:
        counts = regions.extent / regions.extent.new_tensor(bins)
        sizes = counts.ceil().long().clamp(min=1)
    for size in sizes.unique(dim=0):
        rows, columns = size.tolist()
        members = (sizes == size).all(dim=1).nonzero().flatten()
        samples = channels * bins[0] * bins[1] * rows * columns
        for chunk in members.split(max(1, _SAMPLES_AT_ONCE // samples)):
            yield chunk, (rows, columns)


def sample_points(
    start: Tensor, extent: Tensor, bins: tuple[int, int], grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Coordinates of the samples.

    Args:
        start: Upper left corners, shape (R, 2), or (R, bins, bins, 2) where bins are moved apart.
        extent: Heights and widths of the regions, shape (R, 2).
        bins: Rows and columns of bins.
        grid: Rows and columns of samples in a bin.

    Returns:
        y and x, each of shape (R, bin rows, bin columns, samples in a bin).
    """
    if start.dim() == 2:
        start = start[:, None, None]
    coordinates = []
    for side in (0, 1):
        bin_size = extent[:, side, None, None] / bins[side]
        index = torch.arange(bins[side], device=start.device, dtype=start.dtype)
        step = torch.arange(grid[side], device=start.device, dtype=start.dtype)
        # In mmcv's order of operations, so that coordinates round alike.
        inside = (step + 0.5) * bin_size / grid[side]
        position = index[:, None] * bin_size + inside  # (R, bins of this side, samples)
        shape = (-1, bins[0], 1, grid[0], 1) if side == 0 else (-1, 1, bins[1], 1, grid[1])
        moved = start[..., side, None, None] + position.view(shape)
        full = moved.expand(-1, bins[0], bins[1], grid[0], grid[1])
        coordinates.append(full.flatten(3))
    return coordinates[0], coordinates[1]


def bilinear(input: Tensor, image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Bilinear samples of images; more than a pixel outside they are 0.

    Args:
        input: Shape (N, C, H, W).
        image: Indices of images, shape (R,).
        y: Row coordinates, shape (R, ...).
        x: Column coordinates, of the same shape.

    Returns:
        Shape (R, C, ...). Differentiable by ``input``, ``y`` and ``x``.
    """
    height, width = input.shape[2:]
    is_inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(min=0), x.clamp(min=0)
    top, left = y.detach().long().clamp(max=height - 1), x.detach().long().clamp(max=width - 1)
    bottom, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    # At the last row and column there is nothing to interpolate with.
    down = torch.where(top == height - 1, torch.zeros_like(y), y - top)
    across = torch.where(left == width - 1, torch.zeros_like(x), x - left)
    rows = image.view(-1, *[1] * (y.dim() - 1))

    def pixel(row: Tensor, column: Tensor) -> Tensor:
        return input[rows, :, row, column]  # (R, ..., C)

    down, across = (down * is_inside)[..., None], (across * is_inside)[..., None]
    upper = pixel(top, left) * (1 - across) + pixel(top, right) * across
    lower = pixel(bottom, left) * (1 - across) + pixel(bottom, right) * across
    return ((upper * (1 - down) + lower * down) * is_inside[..., None]).movedim(-1, 1)
