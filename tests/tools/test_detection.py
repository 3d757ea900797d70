"""tools/train.py and tools/test.py on a detector, from data to pictures."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
import mmengine
import pytest
from mmengine.registry import DefaultScope

from rednet.datasets.digits_coco import write_digits_coco
from rednet.errors import UserError

pytest.importorskip("mmdet", reason="detectors need mmdet")

ROOT = Path(__file__).resolve().parents[2]
DEMO = str(ROOT / "configs/demo/mask-rcnn_rednet26_digits.py")


def tool(name: str, *arguments: str) -> None:
    """Runs a tool in this process: importing mmdet takes longer than the test."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with DefaultScope.overwrite_default_scope("mmdet"):
        module.main(list(arguments))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits_coco")
    write_digits_coco(folder, dict(train=6, val=3), (64, 64))
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The demo, trained with random scales and aspect ratios."""
    path = tmp_path_factory.mktemp("config") / "multi_scale.py"
    path.write_text(
        f"""
_base_ = {DEMO!r}
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomResize", scale=[(40, 50), (150, 70)], keep_ratio=False),
    dict(type="PackDetInputs"),
]
train_dataloader = dict(batch_size=3, dataset=dict(pipeline=train_pipeline))
train_cfg = dict(max_epochs=1)
"""
    )
    return str(path)


@pytest.fixture(scope="module")
def trained(config: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work_dir")
    root = f"train_dataloader.dataset.data_root={data}"
    tool("train", config, "--work-dir", str(folder), "--no-validate", "--cfg-options", root)
    return folder / "epoch_1.pth"


def evaluate(config: str, data: Path, trained: Path, *arguments: str) -> Path:
    folder = trained.parent / "test"
    options = (f"test_dataloader.dataset.data_root={data}", "model.test_cfg.rcnn.score_thr=0.0")
    tool(
        "test",
        config,
        str(trained),
        "--work-dir",
        str(folder),
        *arguments,
        "--cfg-options",
        *options,
    )
    return folder


def test_evaluation_gives_box_and_mask_ap_of_each_class(
    config: str, data: Path, trained: Path, tmp_path: Path
) -> None:
    metrics = tmp_path / "metrics.json"
    evaluate(config, data, trained, "--out", str(metrics))
    values = mmengine.load(metrics)
    assert {"coco/bbox_mAP", "coco/segm_mAP", "coco/bbox_mAP_50"} <= values.keys()
    assert "coco/7_precision" in values


def test_predictions_are_saved_and_drawn(
    config: str, data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "predictions.pkl"
    folder = tmp_path / "pictures"
    monkeypatch.chdir(tmp_path)
    evaluate(config, data, trained, "--out", str(file), "--show-dir", "pictures")
    predictions = mmengine.load(file)
    assert len(predictions) == 3
    assert {"bboxes", "scores", "labels", "masks"} <= predictions[0]["pred_instances"].keys()
    pictures = list(folder.iterdir())
    assert len(pictures) == 3
    assert cv2.imread(str(pictures[0])) is not None


def test_test_time_augmentation(data: Path, trained: Path, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.json"
    # mmdet merges the boxes of several views, not the masks: the box branch alone is evaluated.
    boxes = str(ROOT / "configs/demo/faster-rcnn_rednet26_digits.py")
    evaluate(boxes, data, trained, "--partial", "--tta", "--out", str(metrics))
    assert "coco/bbox_mAP" in mmengine.load(metrics)


def test_what_mmdet_cannot_do_is_refused(config: str, data: Path, trained: Path) -> None:
    with pytest.raises(UserError, match="--tta: .* no masks, and there is model.roi_head.mask_"):
        evaluate(config, data, trained, "--tta")
    with pytest.raises(UserError, match="--interval 2: mmdet draws every image"):
        evaluate(config, data, trained, "--show-dir", "pictures", "--interval", "2")


def test_a_detector_that_freezes_random_weights_is_refused(
    config: str, data: Path, tmp_path: Path
) -> None:
    options = [f"train_dataloader.dataset.data_root={data}", "model.backbone.frozen_stages=1"]
    with pytest.raises(UserError, match="freezes weights that nothing has trained"):
        tool(
            "train", config, "--work-dir", str(tmp_path), "--no-validate", "--cfg-options", *options
        )
