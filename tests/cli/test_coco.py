from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from rednet.cli.coco import check_coco
from rednet.cli.images import check_images
from rednet.errors import UserError

GOOD: dict[str, Any] = dict(
    images=[dict(id=1, file_name="a.jpg", width=20, height=10)],
    categories=[dict(id=3, name="cat"), dict(id=5, name="dog")],
    annotations=[
        dict(id=7, image_id=1, category_id=3, area=25, bbox=[1, 1, 5, 5]),
        dict(id=8, image_id=1, category_id=5, area=25, bbox=[1.5, 1, 5, 5]),
    ],
)
CLASSES = ("cat", "dog")


def written(path: Path, change: Callable[[dict], Any]) -> str:
    content = deepcopy(GOOD)
    change(content)
    path.write_text(json.dumps(content))
    return str(path)


def annotation(**fields: Any) -> Callable[[dict], Any]:
    return lambda content: content["annotations"][1].update(fields)


def test_good_annotations(tmp_path: Path) -> None:
    assert check_coco(written(tmp_path / "a.json", lambda content: None), CLASSES) == []
    assert check_coco(str(tmp_path / "a.json"), ("dog",)) == []


def test_classes_may_be_missing_where_images_without_boxes_are_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", lambda content: None)
    (note,) = check_coco(path, (*CLASSES, "owl"), keeps_empty=True)
    assert "no categories named owl, which are 1 of" in note


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("categories"), "'categories' must be a list of dicts"),
        (lambda content: content.update(annotations=[]), "has no annotations"),
        (lambda content: content.update(images=[]), "has no images"),
        (lambda content: content["categories"].pop(), "no categories named dog, which are 1 of"),
        (lambda content: content["images"].append(GOOD["images"][0]), "1 ids of images are used"),
        (lambda content: content["images"][0].pop("id"), r"images\[0\] has no id"),
        (lambda content: content["images"][0].update(width=0), "1 images have no width and hei"),
        (annotation(id=7), "1 ids of annotations are used several times, first 7"),
        (annotation(image_id=9), "1 annotations have a image_id .* annotation 8 with 9"),
        (annotation(category_id=4), "1 annotations have a category_id .* annotation 8 with 4"),
        (annotation(bbox=[1, 1, float("nan"), 2]), "no bbox of four finite .* annotation 8 with"),
        (annotation(bbox=[1, 2, 3]), "no bbox of four finite numbers, first annotation 8"),
        (lambda content: content["annotations"][1].pop("area"), "have no area, first annotation 8"),
        (annotation(bbox=None), "no bbox of four finite numbers, first annotation 8"),
    ],
)
def test_annotations_that_are_refused(
    tmp_path: Path, change: Callable[[dict], Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_coco(written(tmp_path / "a.json", change), CLASSES)


@pytest.mark.parametrize("box", [[1, 1, -5, 5], [1, 1, 0, 5], [30, 1, 5, 5], [-9, 1, 5, 5]])
def test_boxes_without_pixels_are_a_note(tmp_path: Path, box: list) -> None:
    (note,) = check_coco(written(tmp_path / "a.json", annotation(bbox=box)), CLASSES)
    assert "1 of 2 boxes are empty or outside their image" in note and "annotation 8" in note


def test_a_file_that_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match="is not a JSON file"):
        check_coco(str(tmp_path / "a.json"), CLASSES)


def test_every_image_is_opened(tmp_path: Path) -> None:
    pytest.importorskip("mmdet")
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((10, 20, 3), np.uint8))
    path = written(tmp_path / "a.json", lambda content: None)
    dataset = dict(type="CocoDataset", ann_file=path, data_prefix=dict(img=str(tmp_path)))
    dataset["metainfo"] = dict(classes=CLASSES)
    config = Config(dict(default_scope="mmdet", train_dataloader=dict(dataset=dataset)))
    check_images(config, ["train_dataloader"])
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(UserError, match=r"1 of 1 images: .*a.jpg is 20 x 20, its annotations say"):
        check_images(config, ["train_dataloader"])
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "a.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(UserError, match="1 of 1 images: cannot read image"):
        check_images(config, ["train_dataloader"])
