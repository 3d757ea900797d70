"""Deformable RoI pooling.

From `Deformable Convolutional Networks <https://arxiv.org/abs/1703.06211>`_.
"""

from __future__ import annotations

from torch import Tensor

from rednet.mmcv_ops.autograd import at_least_float32, gradients
from rednet.mmcv_ops.roi_sampling import Regions, bilinear, grid_groups, sample_points


def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Fills the output with the averages of moved bins.

    Args:
        input: Shape (N, C, H, W).
        rois: Shape (R, 5): image index, x1, y1, x2, y2 in image pixels.
        offset: Shape (R, 2, pooled_height, pooled_width), how far each bin is moved to the right
            and down, in ``gamma`` region sizes; or empty.
        output: Shape (R, C, pooled_height, pooled_width).
        pooled_height: Rows of bins.
        pooled_width: Columns of bins.
        spatial_scale: Pixels of the feature map in a pixel of the image.
        sampling_ratio: Samples in a bin along each side; 0 for one per pixel.
        gamma: Scale of the offsets.
    """
    values, regions, moves = at_least_float32(input, rois, offset)
    bins = (pooled_height, pooled_width)
    output.copy_(_pool(values, regions, moves, bins, spatial_scale, sampling_ratio, gamma))


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Fills ``grad_input`` and ``grad_offset``, of the shapes of ``input`` and ``offset``."""
    grad, values, regions, moves = at_least_float32(grad_output, input, rois, offset)
    bins = (pooled_height, pooled_width)

    def pooled(values: Tensor, moves: Tensor = moves) -> Tensor:
        return _pool(values, regions, moves, bins, spatial_scale, sampling_ratio, gamma)

    has_offset = offset.numel() > 0
    results = gradients(pooled, [values, moves] if has_offset else [values], grad)
    grad_input.copy_(results[0])
    if has_offset:
        grad_offset.copy_(results[1])


def _pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    bins: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> Tensor:
    regions = Regions.read(rois, spatial_scale, aligned=True)
    start = regions.start[:, None, None].expand(-1, *bins, -1)
    if offset.numel():
        # mmcv's offsets come as (x, y).
        moves = offset.flip(1).permute(0, 2, 3, 1)
        start = start + gamma * regions.extent[:, None, None] * moves
    output = input.new_zeros(len(rois), input.shape[1], *bins)
    for chunk, grid in grid_groups(regions, bins, sampling_ratio, input.shape[1]):
        y, x = sample_points(start[chunk], regions.extent[chunk], bins, grid)
        averages = bilinear(input, regions.image[chunk], y, x).mean(dim=-1)
        output = output.index_copy(0, chunk, averages)
    return output
