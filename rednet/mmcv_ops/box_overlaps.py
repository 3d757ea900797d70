"""Overlaps of boxes; mmcv calls this on devices other than the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from rednet.mmcv_ops.autograd import at_least_float32

# mmcv's number for intersection over the first box's area; 0 is over the union.
_OVER_FIRST = 1


def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int
) -> None:
    """Fills ``ious``.

    Args:
        bboxes1: Shape (N, 4), as (x1, y1, x2, y2).
        bboxes2: Shape (M, 4), where aligned (N, 4).
        ious: Shape (N, M), where aligned (N,).
        mode: 0 for intersection over union, 1 for intersection over the first box.
        aligned: Whether to compare boxes of the same index only.
        offset: Added to widths and heights: 1 where x2 and y2 are the last pixels inside.
    """
    bboxes1, bboxes2 = at_least_float32(bboxes1, bboxes2)
    first = bboxes1 if aligned else bboxes1[:, None]
    near = torch.maximum(first[..., :2], bboxes2[..., :2])
    far = torch.minimum(first[..., 2:], bboxes2[..., 2:])
    intersection = (far - near + offset).clamp(min=0).prod(dim=-1)
    area = (first[..., 2:] - first[..., :2] + offset).prod(dim=-1)
    if mode != _OVER_FIRST:
        other = (bboxes2[..., 2:] - bboxes2[..., :2] + offset).prod(dim=-1)
        area = area + other - intersection
    ious.copy_((intersection / area.clamp(min=max(offset, 1e-6))).view_as(ious))
