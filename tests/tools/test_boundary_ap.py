"""tools/analysis_tools/boundary_ap.py on squares of which the overlap is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from rednet.cli.command import run
from tools.analysis_tools import boundary_ap


def square(left: int, top: int = 10, side: int = 20) -> dict:
    pixels = np.zeros((40, 40), np.uint8, order="F")
    pixels[top : top + side, left : left + side] = 1
    return coco_mask.encode(pixels)


def as_text(mask: dict) -> dict:
    return dict(mask, counts=mask["counts"].decode())


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """One square, and a detection of it that lies one pixel to the right."""
    annotation = dict(
        id=1, image_id=7, category_id=1, iscrowd=0, area=400, bbox=[10, 10, 20, 20],
        segmentation=as_text(square(10)),
    )  # fmt: skip
    truth = dict(
        images=[dict(id=7, height=40, width=40)],
        categories=[dict(id=1, name="square")],
        annotations=[annotation],
    )
    found = [dict(image_id=7, category_id=1, score=0.9, segmentation=as_text(square(11)))]
    paths = [tmp_path / "truth.json", tmp_path / "result.segm.json"]
    for path, content in zip(paths, (truth, found), strict=True):
        path.write_text(json.dumps(content))
    return [str(path) for path in paths]


@pytest.mark.parametrize(
    ("pixels", "ap"),
    [
        (1, 0),  # the rings share 38 of 114 pixels: 0.33
        (3, 0.5),  # 170 of 238: 0.71, above 5 of the 10 thresholds
        (20, 0.9),  # the whole squares share 380 of 420: 0.905
    ],
)
def test_a_mask_beside_its_place(files: list[str], pixels: int, ap: float) -> None:
    found = boundary_ap.evaluate(*map(Path, files), pixels / np.hypot(40, 40))
    assert found["mask"]["AP"] == pytest.approx(0.9)
    assert found["boundary"]["AP"] == pytest.approx(ap)
    assert found["boundary"]["AP large"] == -1


def test_the_table(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(boundary_ap.main, [*files, "--dilation-ratio", "0.053"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "| AP from | AP | AP50 | AP75 | AP small | AP medium | AP large |",
        "|---|---|---|---|---|---|---|",
        "| mask | 0.900 | 1.000 | 1.000 | 0.900 | none | none |",
        "| boundary | 0.500 | 1.000 | 0.000 | 0.500 | none | none |",
    ]


def test_sizes_are_those_of_masks(files: list[str]) -> None:
    path = Path(files[1])
    found = json.loads(path.read_text())
    wrong = dict(found[0], score=0.95, bbox=[0, 0, 40, 40], segmentation=as_text(square(0, 0, 9)))
    path.write_text(json.dumps([*found, wrong]))
    metrics = boundary_ap.evaluate(*map(Path, files), 0.02)["mask"]
    assert metrics["AP small"] == metrics["AP"] == pytest.approx(0.45)


def test_the_edge_of_the_image_is_a_boundary() -> None:
    ring = coco_mask.decode(boundary_ap.boundary(square(0, 0, 40), 0.018))
    assert ring.sum() == 40 * 40 - 38 * 38


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{0}/missing.json", "{0}/result.segm.json"], "missing.json is not a JSON file"),
        (["{0}/truth.json", "{0}/truth.json"], "truth.json must hold a list, got a dict"),
        (["{0}/truth.json", "{0}/empty.json"], "empty.json has no detections"),
        (["{0}/truth.json", "{0}/boxes.json"], "boxes.json has no masks: the file that ends in"),
        (["{0}/truth.json", "{0}/other.json"], "other.json: image_id 8 is not among the"),
        (["{0}/truth.json", "{0}/class.json"], "class.json: category_id 9 is not among the"),
        (["{0}/truth.json", "{0}/score.json"], "score.json: detection 0 has no score"),
        (["{0}/coco.json", "{0}/result.segm.json"], "coco.json: annotation 1 has no segmentation"),
        (["{0}/truth.json", "{0}/empty.json", "--dilation-ratio", "2"], "--dilation-ratio must be"),
    ],
)
def test_bad_input(
    arguments: list[str],
    message: str,
    files: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "boxes.json").write_text('[{"image_id": 7, "bbox": [0, 0, 1, 1]}]')
    (detection,) = json.loads(Path(files[1]).read_text())
    changes = dict(other=dict(image_id=8), score=dict(score=None))
    changes["class"] = dict(category_id=9)
    for name, change in changes.items():
        (tmp_path / f"{name}.json").write_text(json.dumps([{**detection, **change}]))
    truth = json.loads(Path(files[0]).read_text())
    del truth["annotations"][0]["segmentation"]
    (tmp_path / "coco.json").write_text(json.dumps(truth))
    assert run(boundary_ap.main, [each.format(tmp_path) for each in arguments]) == 2
    assert message in capsys.readouterr().err
