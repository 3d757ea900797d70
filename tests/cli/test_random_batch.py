from __future__ import annotations

import pytest

from rednet.cli.random_batch import random_batch
from rednet.errors import UserError


def test_a_detection_batch_has_boxes_inside_and_masks_that_fill_them() -> None:
    pytest.importorskip("mmdet")
    batch = random_batch("mmdet", [(20, 30), (1, 1)], objects=4)
    assert [tuple(each.shape) for each in batch["inputs"]] == [(3, 20, 30), (3, 1, 1)]
    instances = batch["data_samples"][0].gt_instances
    assert len(instances) == 4 and instances.bboxes.min() >= 0
    assert (instances.bboxes[:, 2] <= 30).all() and (instances.bboxes[:, 3] <= 20).all()
    sides = instances.bboxes[:, 2:] - instances.bboxes[:, :2]
    assert (instances.masks.areas >= sides.prod(1).numpy()).all()


def test_a_batch_may_be_empty_of_objects() -> None:
    pytest.importorskip("mmdet")
    instances = random_batch("mmdet", [(8, 8)], objects=0)["data_samples"][0].gt_instances
    assert instances.bboxes.shape == (0, 4) and len(instances.masks) == 0


def test_a_classification_batch_has_labels() -> None:
    pytest.importorskip("mmpretrain")
    batch = random_batch("mmpretrain", [(8, 9)] * 3)
    assert batch["inputs"].shape == (3, 3, 8, 9)
    assert all(0 <= int(each.gt_label) < 10 for each in batch["data_samples"])


def test_a_segmentation_batch_has_a_class_for_every_pixel() -> None:
    pytest.importorskip("mmseg")
    batch = random_batch("mmseg", [(8, 9)] * 2)
    assert [tuple(each.shape) for each in batch["inputs"]] == [(3, 8, 9)] * 2
    labels = batch["data_samples"][1].gt_sem_seg.data
    assert labels.shape == (1, 8, 9) and labels.min() >= 0 and labels.max() < 10


def test_another_library_is_refused() -> None:
    with pytest.raises(UserError, match="not for mmaction"):
        random_batch("mmaction", [(8, 8)])
