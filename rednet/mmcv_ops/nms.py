"""Non-maximum suppression: greedy, soft, and with the boxes that each kept box suppressed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rednet.mmcv_ops.autograd import at_least_float32

# mmcv's numbers for the methods of soft nms; any other is Gaussian.
_NAIVE, _LINEAR = 0, 1


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that greedy suppression keeps, by falling score.

    Args:
        boxes: Shape (N, 4), as (x1, y1, x2, y2).
        scores: Shape (N,).
        iou_threshold: Boxes that overlap a kept one by more are dropped.
        offset: Added to widths and heights: 1 where x2 and y2 are the last pixels inside.
    """
    boxes, scores = at_least_float32(boxes, scores)
    return torch.ops.torchvision.nms(_with_offset(boxes, offset), scores, iou_threshold)


def _with_offset(boxes: Tensor, offset: int) -> Tensor:
    """Moving the far corners by the offset changes areas and intersections as mmcv defines it."""
    return boxes + boxes.new_tensor([0, 0, offset, offset]) if offset else boxes


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lowers the scores of boxes that overlap a better one, and drops those below ``min_score``.

    From `Soft-NMS -- Improving Object Detection With One Line of Code
    <https://arxiv.org/abs/1704.04503>`_.

    Args:
        boxes: Shape (N, 4), on the CPU.
        scores: Shape (N,).
        dets: Shape (N, 5). Its first rows are filled with the kept boxes and their new scores.
        iou_threshold: Where the naive and linear methods begin.
        sigma: Width of the Gaussian method.
        min_score: Boxes whose score falls below it are dropped.
        method: 0 for naive, 1 for linear, 2 for Gaussian.
        offset: As in :func:`nms`.

    Returns:
        Indices of the kept boxes, in the order of ``dets``.
    """
    corners = _with_offset(boxes, offset).numpy()
    areas = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    left, current = np.arange(len(corners)), scores.numpy().copy()
    kept: list[int] = []
    while len(left):
        best = left[np.argmax(current[left])]
        dets[len(kept), :4] = boxes[int(best)]
        dets[len(kept), 4] = float(current[best])
        kept.append(int(best))
        left = left[left != best]
        overlaps = _overlaps(corners, areas, best, left)
        current[left] *= _decay(overlaps, iou_threshold, sigma, method).astype(current.dtype)
        left = left[current[left] >= min_score]
    return torch.tensor(kept, dtype=torch.long)


def _overlaps(corners: np.ndarray, areas: np.ndarray, one: int, others: np.ndarray) -> np.ndarray:
    """Intersection over union of one box with others; 0 where the union is empty."""
    near = np.maximum(corners[one, :2], corners[others, :2])
    far = np.minimum(corners[one, 2:], corners[others, 2:])
    intersection = np.prod(np.maximum(far - near, 0), axis=1)
    union = areas[one] + areas[others] - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def _decay(overlaps: np.ndarray, threshold: float, sigma: float, method: int) -> np.ndarray:
    if method == _NAIVE:
        return (overlaps < threshold).astype(overlaps.dtype)
    if method == _LINEAR:
        return np.where(overlaps < threshold, 1, 1 - overlaps)
    return np.exp(-(overlaps**2) / sigma)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Greedy suppression that tells, for each kept box, which boxes it suppressed.

    Args:
        dets: Shape (N, 5), boxes and scores.
        iou_threshold: Boxes that overlap a kept one by at least as much are its matches.

    Returns:
        For each kept box, by falling score, its index and those of its matches.
    """
    (rows,) = at_least_float32(dets.detach().cpu())
    corners, scores = rows[:, :4].numpy(), rows[:, 4]
    areas = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    left = scores.argsort(descending=True, stable=True).numpy()
    matches = []
    while len(left):
        best, left = left[0], left[1:]
        is_match = _overlaps(corners, areas, best, left) >= iou_threshold
        matches.append([int(best), *left[is_match].tolist()])
        left = left[~is_match]
    return matches
