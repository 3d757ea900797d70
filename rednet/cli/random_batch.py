"""Batches of random images with annotations, for models that have no data at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData

from rednet.errors import UserError

Size = tuple[int, int]

_CLASSES = 10


def random_batch(
    scope: str | None, sizes: Sequence[Size], objects: int = 10, channels: int = 3
) -> dict[str, Any]:
    """Makes what a data loader would give.

    Args:
        scope: The library whose models take it, ``'mmpretrain'``, ``'mmdet'`` or ``'mmseg'``.
        sizes: Height and width of each image.
        objects: Annotated objects in each image, for a detector: boxes of an eighth to a half of
            the image's sides, with a mask that fills the box, of the first ten classes. For a
            segmentor, every pixel has one of these classes.
        channels: Channels of the images.

    Returns:
        ``inputs``, uint8 images (channels, H, W), and ``data_samples``.

    Raises:
        UserError: If no such batch is known for the scope.
    """
    if scope not in ("mmpretrain", "mmdet", "mmseg"):
        raise UserError(
            f"there are random batches for mmpretrain, mmdet and mmseg, not for {scope}"
        )
    inputs = [torch.randint(256, (channels, *size), dtype=torch.uint8) for size in sizes]
    if scope == "mmpretrain":
        return dict(inputs=torch.stack(inputs), data_samples=[_classified(each) for each in sizes])
    if scope == "mmseg":
        return dict(inputs=inputs, data_samples=[_segmented(each) for each in sizes])
    return dict(inputs=inputs, data_samples=[_detected(each, objects) for each in sizes])


def _classified(size: Size) -> BaseDataElement:
    from mmpretrain.structures import DataSample

    sample = DataSample(metainfo=dict(img_shape=size, ori_shape=size))
    return sample.set_gt_label(int(torch.randint(_CLASSES, ())))


def _detected(size: Size, objects: int) -> BaseDataElement:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    extent = torch.tensor([size[1], size[0]])
    sides = (torch.rand(objects, 2) * 3 + 1) / 8 * extent
    corners = torch.rand(objects, 2) * (extent - sides)
    boxes = torch.cat([corners, corners + sides], dim=1)
    masks = np.zeros((objects, *size), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.tolist(), strict=True):
        mask[int(top) : int(bottom) + 1, int(left) : int(right) + 1] = 1
    sample = DetDataSample(
        metainfo=dict(img_id=0, img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
    )
    sample.gt_instances = InstanceData(
        bboxes=boxes, labels=torch.randint(_CLASSES, (objects,)), masks=BitmapMasks(masks, *size)
    )
    sample.ignored_instances = InstanceData(
        bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
    )
    return sample


def _segmented(size: Size) -> BaseDataElement:
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size))
    sample.gt_sem_seg = PixelData(data=torch.randint(_CLASSES, (1, *size)))
    return sample
