"""The commands on a segmentor, from data to pictures."""

from __future__ import annotations

import importlib.util
import json
import uuid
from pathlib import Path

import cv2
import mmengine
import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope

from rednet.cli.command import run
from rednet.cli.config import read_config
from rednet.cli.model import build_model, load_weights
from rednet.cli.random_batch import random_batch
from rednet.datasets.digits_coco import Item, Scene, class_map, write_digits_coco
from rednet.errors import UserError
from tools import predict
from tools.analysis_tools import get_flops

pytest.importorskip("mmseg", reason="segmentors need mmseg")

ROOT = Path(__file__).resolve().parents[2]
DEMO = str(ROOT / "configs/demo/fpn_rednet26_digits-seg.py")
SIZE = (64, 96)


def tool(name: str, *arguments: str) -> None:
    """Runs a tool in this process: importing mmseg takes longer than the test."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with DefaultScope.overwrite_default_scope("mmseg"):
        module.main(list(arguments))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits_seg")
    write_digits_coco(folder, dict(train=8, val=3), SIZE, semantic=True)
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work_dir")
    options = [f"train_dataloader.dataset.data_root={data}", "train_cfg.max_epochs=1"]
    options += ["train_dataloader.batch_size=4", "model.backbone.init_cfg=None"]
    tool("train", DEMO, "--work-dir", str(folder), "--no-validate", "--cfg-options", *options)
    return folder / "epoch_1.pth"


def evaluate(data: Path, trained: Path, *arguments: str) -> None:
    folder = str(trained.parent / "test")
    options = [f"test_dataloader.dataset.data_root={data}"]
    # mmengine keeps one visualizer of each name in a process, with its first folder.
    options.append(f"visualizer.name={uuid.uuid4()}")
    tool("test", DEMO, str(trained), "--work-dir", folder, *arguments, "--cfg-options", *options)


def test_class_maps_name_the_digits_and_ignore_crowds(data: Path) -> None:
    mask = np.zeros((2, 4), bool)
    mask[0, 1], other, crowd = True, np.roll(mask, 1, axis=1), np.roll(mask, 1, axis=0)
    mask[0, 1] = True
    other[0, 2], crowd[1, 1] = True, True
    items = [Item(mask, 3, crowd=False), Item(other, 9, crowd=False), Item(crowd, 3, crowd=True)]
    scene = Scene(np.zeros((2, 4, 3), np.uint8), items)
    assert class_map(scene).tolist() == [[0, 4, 10, 0], [0, 255, 0, 0]]
    for split, count in (("train", 8), ("val", 3)):
        names = [path.stem for path in sorted((data / split).glob("*.jpg"))]
        maps = sorted((data / "semantic" / split).glob("*.png"))
        assert [path.stem for path in maps] == names and len(names) == count
        annotations = json.loads((data / f"annotations/instances_{split}.json").read_text())
        for path in maps:
            labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            assert labels.shape == SIZE and labels.dtype == np.uint8
            objects = [
                each for each in annotations["annotations"] if each["image_id"] == int(path.stem)
            ]
            area = sum(each["area"] for each in objects if not each["iscrowd"])
            assert ((labels > 0) & (labels < 255)).sum() == area


def test_a_training_is_evaluated(data: Path, trained: Path, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.json"
    evaluate(data, trained, "--out", str(metrics))
    values = mmengine.load(metrics)
    assert {"aAcc", "mIoU", "mAcc"} <= values.keys() and 0 <= values["mIoU"] <= 100


def test_predictions_are_saved_and_drawn(data: Path, trained: Path, tmp_path: Path) -> None:
    masks, pictures = tmp_path / "masks", tmp_path / "pictures"
    evaluate(data, trained, "--out", str(masks), "--show-dir", str(pictures))
    saved = sorted(masks.glob("*.png"))
    assert [path.stem for path in saved] == ["000001", "000002", "000003"]
    labels = cv2.imread(str(saved[0]), cv2.IMREAD_UNCHANGED)
    assert labels.shape == SIZE and labels.max() < 11
    assert len(list(pictures.rglob("*.png"))) == 3


def test_flips_are_averaged(data: Path, trained: Path, tmp_path: Path) -> None:
    evaluate(data, trained, "--tta", "--out", str(tmp_path))
    model = build_model(read_config(DEMO)[0]).eval()
    load_weights(model, str(trained))
    image = cv2.imread(str(data / "val/000001.jpg"))
    batch = random_batch("mmseg", [SIZE])
    probabilities = torch.zeros(11, *SIZE)
    for flipped in (False, True):
        view = image[:, ::-1].copy() if flipped else image
        batch["inputs"] = [torch.from_numpy(view).permute(2, 0, 1)]
        with torch.no_grad():
            scores = model.test_step(batch)[0].seg_logits.data.softmax(0)
        probabilities += scores.flip(2) if flipped else scores
    saved = cv2.imread(str(tmp_path / "000001.png"), cv2.IMREAD_UNCHANGED)
    assert (saved == probabilities.argmax(0).numpy()).mean() > 0.999  # but for ties in rounding


def test_outputs_that_are_none_of_mmseg(data: Path, trained: Path) -> None:
    with pytest.raises(UserError, match="--out must be a folder for mmseg's predictions"):
        evaluate(data, trained, "--out", "predictions.pkl")


def test_a_checkpoint_of_another_network_leaves_no_folder(data: Path, tmp_path: Path) -> None:
    checkpoint, folder = tmp_path / "other.pth", tmp_path / "new" / "masks"
    torch.save(dict(state_dict={"weight": torch.zeros(1)}), checkpoint)
    with pytest.raises(UserError):
        evaluate(data, checkpoint, "--out", str(folder))
    assert not (tmp_path / "new").exists()


def test_data_with_more_classes_than_the_head(data: Path, tmp_path: Path) -> None:
    options = [f"train_dataloader.dataset.data_root={data}", "model.decode_head.num_classes=4"]
    with pytest.raises(UserError, match=r"has 11 classes, and .*num_classes is 4: --cfg-options"):
        tool("train", DEMO, "--work-dir", str(tmp_path), "--cfg-options", *options)


def test_missing_data_name_the_converter(tmp_path: Path) -> None:
    option = f"train_dataloader.dataset.data_root={tmp_path / 'none'}"
    with pytest.raises(
        UserError, match=r"does not exist.*make_digits_coco.py data/digits_seg --semantic"
    ):
        tool("train", DEMO, "--work-dir", str(tmp_path), "--cfg-options", option)


def test_flops_and_pictures_of_ones_own(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(get_flops.main, [DEMO, "--shape", "32", "64"]) == 0
    assert "737,337" in capsys.readouterr().out
    picture, out = str(data / "val/000001.jpg"), tmp_path / "out"
    assert run(predict.main, [DEMO, str(trained), picture, "--out", str(out)]) == 0
    [shares] = json.loads((out / "predictions.json").read_text()).values()
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert cv2.imread(str(out / "000001.jpg")).shape == (*SIZE, 3)
