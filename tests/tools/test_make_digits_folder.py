from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("sklearn")

from rednet.cli.command import run
from rednet.datasets import Digits
from rednet.datasets.digits_scenes import scenes
from tools.dataset_converters import make_digits_folder


def test_the_files_hold_the_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "digits"
    assert run(make_digits_folder.main, [str(folder)]) == 0
    lines = [f"{folder}/train: 1442 images", f"{folder}/val: 355 images"]
    assert capsys.readouterr().out.splitlines() == lines
    assert len(list(folder.rglob("train/*/*.png"))) == 1442
    sample = Digits(split="val")[17]
    image = cv2.imread(str(folder / f"val/{sample['gt_label']}/0017.png"))
    np.testing.assert_array_equal(image, sample["img"])

    assert run(make_digits_folder.main, [str(folder)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_digits_on_photographs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {split: (*rest, 6) for split, (*rest, _) in make_digits_folder.SCENES.items()}
    monkeypatch.setattr(make_digits_folder, "SCENES", counts)
    assert run(make_digits_folder.main, [str(tmp_path / "a"), "--scenes"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    images = {
        split: [path.read_bytes() for path in sorted((tmp_path / "a" / split).rglob("*.png"))]
        for split in counts
    }
    assert [len(each) for each in images.values()] == [6, 6, 6]
    assert not set(images["val"]) & set(images["test"])
    # The middle digit of the scenes, as they are in the data set of the detectors.
    labels = [
        item.label
        for scene in scenes("train", 9, (128, 128))
        for item in scene.items
        if not item.crowd
    ]
    written = sorted((tmp_path / "a/train").rglob("*.png"), key=lambda path: path.name)
    assert [int(path.parent.name) for path in written] == labels[:6]
    assert cv2.imread(str(written[0])).shape == (48, 48, 3)
