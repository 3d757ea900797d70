"""What a detector's ``nms`` says is checked before the training, not at its first proposals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmdet")

from mmengine.config import Config

from rednet.cli.model import build_model
from rednet.cli.nms_keys import check_nms_keys
from rednet.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FASTER = ROOT / "configs/demo/faster-rcnn_rednet26_digits.py"


def _config(options: dict[str, Any]) -> Config:
    config = Config.fromfile(FASTER)
    config.merge_from_dict(options)
    return config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.test_cfg.rcnn.nms.type", "nmss", "must be one of nms, soft_nms, nms_rotated, "),
        ("model.test_cfg.rcnn.nms.type", ["nms"], "got ['nms']"),
        (
            "model.test_cfg.rcnn.nms.iou_thresold",
            0.5,
            "=0.5: nms has no argument 'iou_thresold'; did you mean iou_threshold",
        ),
        ("model.train_cfg.rpn_proposal.nms.sigma", 0.5, "=0.5: nms has no argument 'sigma'"),
        ("model.test_cfg.rpn.nms.iou_threshold", "high", " must be a number, got 'high'"),
    ],
)
def test_what_mmcv_does_not_take(key: str, value: Any, message: str) -> None:
    config = _config({key: value})
    with pytest.raises(UserError) as caught:
        check_nms_keys(config, "mmdet")
    assert str(caught.value).startswith(key) and message in str(caught.value)
    with pytest.raises(UserError, match=key):
        build_model(config)
    check_nms_keys(config, "another")


@pytest.mark.parametrize(
    "nms",
    [
        dict(iou_threshold=0.5),
        dict(type="nms", iou_thr=0.5, class_agnostic=True, split_thr=100, max_num=10),
        dict(type="soft_nms", iou_threshold=0.5, min_score=0.05, method="gaussian"),
        None,
    ],
)
def test_what_mmcv_takes(nms: dict | None) -> None:
    check_nms_keys(
        _config({"model.test_cfg.rcnn.nms": dict(_delete_=True, **nms) if nms else nms}), "mmdet"
    )
