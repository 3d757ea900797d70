from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("sklearn")

from rednet.cli.command import run
from rednet.datasets import Digits
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
