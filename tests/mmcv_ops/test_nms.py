"""Suppression in the order of mmcv's kernels: equal scores, and overlaps equal to the threshold."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

pytest.importorskip("torchvision")
import rednet  # noqa: E402, F401  (offers the operators)

mmcv_ops = pytest.importorskip("mmcv.ops")

THRESHOLD = 0.4


def few_numbers(seed: int, count: int = 60) -> tuple[Tensor, Tensor]:
    """Boxes with whole corners and scores of few values, so that both have ties."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 20, (count, 2), generator=generator)
    sides = torch.randint(1, 12, (count, 2), generator=generator)
    scores = torch.randint(1, 9, (count,), generator=generator) / 8
    return torch.cat([corners, corners + sides], dim=1).float(), scores


def overlap(one: list[float], other: list[float], offset: int) -> float:
    """Intersection over union as a float32 number."""

    def area(x1: float, y1: float, x2: float, y2: float) -> float:
        return max(0.0, x2 - x1 + offset) * max(0.0, y2 - y1 + offset)

    shared = area(*map(max, one[:2], other[:2]), *map(min, one[2:], other[2:]))
    return torch.tensor(shared / (area(*one) + area(*other) - shared)).item()


def suppressed_by_loops(
    boxes: Tensor, scores: Tensor, offset: int, inclusive: bool
) -> list[list[int]]:
    """For each kept box its index and those of the boxes that it suppresses."""
    limit = torch.tensor(THRESHOLD).item()
    left, result = scores.argsort(descending=True).tolist(), []
    while left:
        best, *left = left
        overlaps = {each: overlap(*boxes[[best, each]].tolist(), offset) for each in left}
        gone = [i for i in left if overlaps[i] > limit or (inclusive and overlaps[i] == limit)]
        result.append([best, *gone])
        left = [each for each in left if each not in gone]
    return result


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("seed", range(4))
def test_nms(seed: int, offset: int) -> None:
    boxes, scores = few_numbers(seed)
    dets, kept = mmcv_ops.nms(boxes, scores, THRESHOLD, offset)
    expected = [best for best, *_ in suppressed_by_loops(boxes, scores, offset, inclusive=False)]
    assert kept.tolist() == expected
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], dim=1)[kept])


def test_nms_of_two_dtypes() -> None:
    boxes, scores = few_numbers(0)
    message = r"the same dtype, got torch\.float64 and torch\.float32"
    with pytest.raises(ValueError, match=message):
        mmcv_ops.nms(boxes.double(), scores, THRESHOLD)


@pytest.mark.parametrize("seed", range(4))
def test_nms_match(seed: int) -> None:
    boxes, scores = few_numbers(seed)
    found = mmcv_ops.nms_match(torch.cat([boxes, scores[:, None]], dim=1), THRESHOLD)
    expected = suppressed_by_loops(boxes, scores, 0, inclusive=True)
    assert [each.tolist() for each in found] == expected


def test_an_overlap_of_exactly_the_threshold_is_kept() -> None:
    boxes = torch.tensor([[0.0, 0, 7, 1], [3, 0, 10, 1]])
    assert mmcv_ops.nms(boxes, torch.tensor([0.9, 0.8]), THRESHOLD)[1].tolist() == [0, 1]


def soft_nms_by_loops(
    boxes: Tensor, scores: Tensor, method: str, sigma: float, min_score: float, offset: int
) -> list[tuple[int, float]]:
    """Indices and scores. A dropped box is replaced by the last one, as mmcv does."""
    rows, done = list(enumerate(scores.tolist())), 0
    while done < len(rows):
        best = max(range(done, len(rows)), key=lambda place: rows[place][1])
        rows[done], rows[best] = rows[best], rows[done]
        place = done + 1
        while place < len(rows):
            index, score = rows[place]
            shared = overlap(*boxes[[rows[done][0], index]].tolist(), offset)
            decay = {
                "naive": float(shared < THRESHOLD),
                "linear": 1 if shared < THRESHOLD else 1 - shared,
                "gaussian": math.exp(-(shared**2) / sigma),
            }[method]
            rows[place] = (index, torch.tensor(score * decay).item())
            if rows[place][1] < min_score:
                rows[place] = rows[-1]
                rows.pop()
            else:
                place += 1
        done += 1
    return rows


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
def test_soft_nms(method: str, offset: int) -> None:
    boxes, scores = few_numbers(5)
    dets, kept = mmcv_ops.soft_nms(boxes, scores, THRESHOLD, 0.5, 0.05, method, offset)
    expected = soft_nms_by_loops(boxes, scores, method, 0.5, 0.05, offset)
    assert 1 < len(expected) < len(boxes)
    assert dets[:, 4].tolist() == pytest.approx([score for _, score in expected], rel=1e-5)
    assert torch.equal(dets[:, :4], boxes[kept])
    if method != "gaussian":  # whose rounding decides between scores that are all but equal
        assert kept.tolist() == [index for index, _ in expected]


@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
def test_soft_nms_of_no_boxes(method: str) -> None:
    dets, kept = mmcv_ops.soft_nms(torch.zeros(0, 4), torch.zeros(0), method=method)
    assert (dets.shape, kept.shape) == ((0, 5), (0,))
