from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.registry import DATASETS

from rednet.datasets.digits_coco import (
    CLASSES,
    Item,
    annotation,
    annotation_file,
    check_annotations,
    polygons,
    run_lengths,
    scenes,
    write_digits_coco,
)
from rednet.errors import UserError

coco_mask = pytest.importorskip("pycocotools.mask")

IMAGES = dict(train=40, val=12)
SIZE = (72, 96)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits_coco")
    write_digits_coco(folder, IMAGES, SIZE)
    return folder


def read(folder: Path, split: str) -> dict:
    return json.loads(annotation_file(folder, split).read_text())


@pytest.mark.parametrize("split", IMAGES)
def test_pycocotools_agrees_with_every_annotation(folder: Path, split: str) -> None:
    counts = check_annotations(annotation_file(folder, split))
    assert counts["images"] == IMAGES[split] and counts["objects"] > IMAGES[split]


def test_there_are_crowds_empty_images_polygons_and_run_lengths(folder: Path) -> None:
    counts = check_annotations(annotation_file(folder, "train"))
    assert counts["crowds"] > 0 and counts["empty"] > 0
    single = [each for each in read(folder, "train")["annotations"] if not each["iscrowd"]]
    assert {type(each["segmentation"]) for each in single} == {list, dict}


def test_no_object_covers_another() -> None:
    for scene in scenes("val", 20, SIZE):
        masks = np.array([item.mask for item in scene.items])
        assert len(masks) == 0 or masks.sum(axis=0).max() == 1


def test_images_have_the_size_asked_for(folder: Path) -> None:
    for each in read(folder, "val")["images"]:
        assert cv2.imread(str(folder / "val" / each["file_name"])).shape == (*SIZE, 3)


def test_a_second_run_writes_the_same_bytes_and_a_smaller_one_a_part(
    folder: Path, tmp_path: Path
) -> None:
    write_digits_coco(tmp_path, dict(train=9), SIZE)
    for path in sorted((tmp_path / "train").iterdir()):
        assert path.read_bytes() == (folder / "train" / path.name).read_bytes()
    few, all_ = (read(each, "train")["annotations"] for each in (tmp_path, folder))
    assert few == all_[: len(few)]


def test_another_seed_gives_other_images() -> None:
    first, second = (next(scenes("val", 1, SIZE, seed)).image for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_annotations_are_replaced_only_on_request(tmp_path: Path) -> None:
    write_digits_coco(tmp_path, dict(val=3), SIZE)
    with pytest.raises(UserError, match="instances_val.json exists"):
        write_digits_coco(tmp_path, dict(val=2), SIZE)
    (tmp_path / "val" / "mine.jpg").touch()
    write_digits_coco(tmp_path, dict(val=2), SIZE, overwrite=True)
    written = {each["file_name"] for each in read(tmp_path, "val")["images"]}
    assert written | {"mine.jpg"} == {path.name for path in (tmp_path / "val").iterdir()}
    assert len(written) == 2


def test_more_digits_in_an_image() -> None:
    few, many = (
        [len(scene.items) for scene in scenes("train", 20, (128, 128), most_digits=most)]
        for most in (1, 12)
    )
    assert max(few) <= 2  # a digit and a crowd
    assert max(many) > 6 and sum(many) > 3 * sum(few)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(images=dict(train=0)), "at least 1 image for train, got 0"),
        (dict(size=(63, 96)), "64 to 65500 pixels wide and high, got 96 wide and 63 high"),
        (dict(size=(64, 65501)), "got 65501 wide and 64 high"),
        (dict(seed=-1), "seed must be at least 0, got -1"),
        (dict(most_digits=0), "most_digits must be at least 1 digit in an image, got 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_digits_coco(tmp_path, **{"images": dict(train=1), "size": SIZE, **arguments})
    assert not list(tmp_path.iterdir())


def test_an_image_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "train" / "000002.jpg" / "folder").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"^{tmp_path} cannot be written: Is a directory$"):
        write_digits_coco(tmp_path, dict(train=2), SIZE)
    assert not annotation_file(tmp_path, "train").exists()


def test_polygons_and_run_lengths_give_the_mask_back() -> None:
    mask = np.zeros((9, 11), bool)
    mask[2:6, 3:5] = mask[5, 3:9] = mask[0, 10] = True
    outlines = polygons(mask)
    assert outlines is not None and len(outlines) == 2
    for segmentation in (outlines, run_lengths(mask)):
        encoded = coco_mask.frPyObjects(segmentation, *mask.shape)
        encoded = coco_mask.merge(encoded) if isinstance(encoded, list) else encoded
        assert np.array_equal(coco_mask.decode(encoded).astype(bool), mask)


def test_a_hole_needs_run_lengths() -> None:
    mask = np.ones((5, 5), bool)
    mask[2, 2] = False
    assert polygons(mask) is None
    assert annotation(Item(mask, 3, crowd=False))["segmentation"]["counts"] == [0, 12, 1, 12]


def test_a_wrong_box_is_found(folder: Path, tmp_path: Path) -> None:
    content = read(folder, "val")
    content["annotations"][0]["bbox"][0] += 1
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="annotation 1 "):
        check_annotations(path)


def test_mmdets_coco_data_set_reads_it(folder: Path) -> None:
    pytest.importorskip("mmdet")
    config = dict(
        type="CocoDataset",
        data_root=str(folder),
        ann_file="annotations/instances_train.json",
        data_prefix=dict(img="train/"),
        metainfo=dict(classes=CLASSES),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            dict(type="PackDetInputs"),
        ],
    )
    with DATASETS.switch_scope_and_registry("mmdet") as registry:
        dataset = registry.build(config)
    annotations = read(folder, "train")["annotations"]
    assert len(dataset) == IMAGES["train"]
    instances = [dataset[index]["data_samples"].gt_instances for index in range(len(dataset))]
    ignored = [dataset[index]["data_samples"].ignored_instances for index in range(len(dataset))]
    assert sum(map(len, instances)) + sum(map(len, ignored)) == len(annotations)
    assert sum(map(len, ignored)) == sum(each["iscrowd"] for each in annotations)
    assert sum(map(len, ignored)) > 0
    for each in filter(len, instances):
        masks = each.masks.to_tensor(bool, "cpu")
        boxes = each.bboxes.tensor
        sizes = boxes[:, 2:] - boxes[:, :2]
        assert (masks.flatten(1).sum(1) <= sizes.prod(1)).all()
