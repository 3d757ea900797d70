from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.forked_programs import run_tool

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("pycocotools")

TOOL = "dataset_converters/make_digits_coco.py"


def test_it_writes_checks_and_counts(tmp_path: Path) -> None:
    options = ["--train", "3", "--val", "2", "--size", "64", "96"]
    done = run_tool(TOOL, tmp_path / "digits", *options)
    assert done.returncode == 0, done.stderr
    assert "instances_train.json: 3 images" in done.stdout
    content = json.loads((tmp_path / "digits/annotations/instances_val.json").read_text())
    assert [(each["width"], each["height"]) for each in content["images"]] == [(96, 64)] * 2
    again = run_tool(TOOL, tmp_path / "digits", *options)
    assert again.returncode == 2 and again.stderr.startswith("error: ")
    assert "--overwrite" in again.stderr and "Traceback" not in again.stderr


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_tool(TOOL, tmp_path / "file" / "digits")
    assert done.returncode == 2 and "file is a file, not a directory" in done.stderr


def test_a_demo_without_its_data_names_this_tool(tmp_path: Path) -> None:
    pytest.importorskip("mmdet")
    config = ROOT / "configs/demo/faster-rcnn_rednet26_digits.py"
    done = run_tool("train.py", config, folder=tmp_path)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (
        "data/digits_coco" in line
        and "configs/demo: python tools/dataset_converters/make_digits_coco.py" in line
    )
    assert "is not a meta file" not in done.stderr
