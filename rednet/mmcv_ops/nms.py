"""Non-maximum suppression: greedy, soft, and with the boxes that each kept box suppressed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from rednet.mmcv_ops.autograd import at_least_float32

# mmcv's numbers for the methods of soft nms; any other is Gaussian.
_NAIVE, _LINEAR = 0, 1
# Rows of the tables below, after the corners.
_AREA, _SCORE = 4, 5


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that greedy suppression keeps, by falling score.

    Args:
        boxes: Shape (N, 4), as (x1, y1, x2, y2).
        scores: Shape (N,).
        iou_threshold: Boxes that overlap a kept one by more are dropped.
        offset: Added to widths and heights: 1 where x2 and y2 are the last pixels inside.

    Raises:
        ValueError: If the boxes and scores differ in their dtype.
    """
    if boxes.dtype != scores.dtype:
        raise ValueError(
            f"boxes and scores must have the same dtype, got {boxes.dtype} and {scores.dtype}"
        )
    boxes, scores = at_least_float32(boxes, scores)
    # torchvision keeps equal scores in their order; mmcv's sort does not.
    order = scores.argsort(descending=True)
    corners = _with_offset(boxes, offset)[order]
    # mmcv compares with the threshold in the boxes' type, torchvision in double precision.
    threshold = torch.tensor(iou_threshold, dtype=boxes.dtype).item()
    return order[torch.ops.torchvision.nms(corners, scores[order], threshold)]


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
    # NumPy has no bfloat16, and areas of large boxes overflow in float16.
    boxes, scores = at_least_float32(boxes, scores)
    corners = _with_offset(boxes, offset).numpy()
    areas = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    table = np.vstack([corners.T, areas, scores.numpy()])  # a box in each column
    index = np.arange(len(corners))
    end = _suppress_softly(table, index, min_score, partial(_decay, iou_threshold, sigma, method))
    kept = torch.from_numpy(index[:end])
    dets[:end, :4] = boxes[kept]
    dets[:end, 4] = torch.from_numpy(table[_SCORE, :end])
    return kept


def _suppress_softly(
    table: np.ndarray, index: np.ndarray, min_score: float, decay: Callable[..., np.ndarray]
) -> int:
    """Moves the kept columns to the front, by falling score, and counts them."""
    first, end = 0, len(index)
    while first < end:
        best = first + int(table[_SCORE, first:end].argmax())
        for array in (table, index):
            array[..., [first, best]] = array[..., [best, first]]
        left = table[:, first + 1 : end]
        left[_SCORE] *= decay(_overlaps(table[:, first, None], left))
        first += 1
        end = first + _move_to_front(left[_SCORE] >= min_score, left, index[first:end])
    return end


def _move_to_front(is_kept: np.ndarray, *arrays: np.ndarray) -> int:
    """Fills the place of each dropped column by the last kept one, and counts the kept.

    mmcv's order, in which equal scores are chosen.
    """
    count = int(np.count_nonzero(is_kept))
    if count < len(is_kept):
        holes = np.flatnonzero(~is_kept[:count])
        last = count + np.flatnonzero(is_kept[count:])[::-1]
        for array in arrays:
            array[..., holes] = array[..., last]
    return count


def _overlaps(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of one column (x1, y1, x2, y2, area) with others; 0 for no union."""
    near = np.maximum(one[:2], others[:2])
    sides = np.minimum(one[2:4], others[2:4]) - near
    np.maximum(sides, 0, out=sides)
    intersection = sides[0] * sides[1]
    union = one[_AREA] + others[_AREA] - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def _decay(threshold: float, sigma: float, method: int, overlaps: np.ndarray) -> np.ndarray:
    """The factors of scores whose boxes overlap the chosen one."""
    if method == _NAIVE:
        return (overlaps < threshold).astype(overlaps.dtype)
    if method == _LINEAR:
        return np.where(overlaps < threshold, 1, 1 - overlaps)
    # In double precision: NumPy's float32 exponential is off by a unit in the last place.
    return np.exp(-(overlaps**2) / sigma, dtype=np.float64).astype(overlaps.dtype)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Greedy suppression that tells, for each kept box, which boxes it suppressed.

    Args:
        dets: Shape (N, 5), boxes and scores.
        iou_threshold: Boxes that overlap a kept one by at least as much are its matches.

    Returns:
        For each kept box, by falling score, its index and those of its matches.
    """
    (rows,) = at_least_float32(dets.detach().cpu())
    corners = rows[:, :4].numpy()
    table = np.vstack([corners.T, np.prod(corners[:, 2:] - corners[:, :2], axis=1)])
    left = rows[:, 4].argsort(descending=True).numpy()
    matches = []
    while len(left):
        best, left = left[0], left[1:]
        is_match = _overlaps(table[:, best, None], table[:, left]) >= iou_threshold
        matches.append([int(best), *left[is_match].tolist()])
        left = left[~is_match]
    return matches
