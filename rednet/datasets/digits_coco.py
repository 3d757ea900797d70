"""A generated data set, handwritten digits on photographs, with COCO's annotations or class maps.

The digits and the photographs come with scikit-learn. Training and validation images share neither
digits nor parts of the photographs.

The photographs are scikit-learn's, by danielbuechele and vultilion, under CC BY 2.0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.progress import track

from rednet.datasets.digits_scenes import CLASSES, MOST_DIGITS, Item, Scene, Size, scenes
from rednet.errors import UserError
from rednet.files import failing_as_user_error, write_file

SEMANTIC = "semantic"
# 65500 is libjpeg's limit.
SIDES = (64, 65500)
JPEG_QUALITY = 95
BACKGROUND, IGNORED = 0, 255  # labels of a class map besides those of the digits
# Polygons are traced on a grid that is finer than the pixels by this factor.
TRACE_SCALE = 4


def write_digits_coco(
    folder: str | Path,
    images: Mapping[str, int],
    size: Size = (128, 128),
    seed: int = 0,
    overwrite: bool = False,
    semantic: bool = False,
    most_digits: int = MOST_DIGITS,
) -> None:
    """Writes ``<split>/*.jpg`` and ``annotations/instances_<split>.json`` below a folder.

    With ``semantic``, also ``semantic/<split>/*.png``: the class of every pixel, in mmseg's form.

    Every image depends only on the seed, the split and its number: a larger data set begins with
    the images of a smaller one, and two runs write the same bytes.

    Args:
        folder: Where to write.
        images: Number of images by split, ``'train'`` or ``'val'``.
        size: Height and width of the images in pixels, 64 to 65500 each.
        seed: Random seed, at least 0.
        overwrite: Whether an existing data set may be replaced. All its images are removed first.
        semantic: Whether to write class maps as well; see :func:`class_map`.
        most_digits: Digits that are drawn in an image at most, besides a crowd.

    Raises:
        UserError: If an argument is out of range, annotations exist already or a file cannot be
            written.
    """
    if min(size) < SIDES[0] or max(size) > SIDES[1]:
        raise UserError(
            f"images must be {SIDES[0]} to {SIDES[1]} pixels wide and high, got {size[1]} wide and "
            f"{size[0]} high"
        )
    if seed < 0:
        raise UserError(f"seed must be at least 0, got {seed}")
    if most_digits < 1:
        raise UserError(f"most_digits must be at least 1 digit in an image, got {most_digits}")
    for split, count in images.items():
        if count < 1:
            raise UserError(f"there must be at least 1 image for {split}, got {count}")
        path = annotation_file(folder, split)
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists; give another folder or --overwrite")
    with failing_as_user_error(folder):
        for split, count in images.items():
            _remove_split(Path(folder), split)
            drawn = scenes(split, count, size, seed, most_digits)
            _write_split(Path(folder), split, drawn, count, size, seed, semantic)


def annotation_file(folder: str | Path, split: str) -> Path:
    """Returns the path of the annotations of a split."""
    return Path(folder) / "annotations" / f"instances_{split}.json"


def _remove_split(folder: Path, split: str) -> None:
    """Removes the annotations, the numbered images and class maps, and no other files."""
    annotation_file(folder, split).unlink(missing_ok=True)
    for path in (*folder.glob(f"{split}/*.jpg"), *folder.glob(f"{SEMANTIC}/{split}/*.png")):
        if path.stem.isdigit():
            path.unlink()


def _write_split(
    folder: Path,
    split: str,
    drawn: Iterator[Scene],
    count: int,
    size: Size,
    seed: int,
    semantic: bool,
) -> None:
    for name in (split, "annotations", *([f"{SEMANTIC}/{split}"] if semantic else [])):
        (folder / name).mkdir(parents=True, exist_ok=True)
    images: list[dict] = []
    annotations: list[dict] = []
    shown = track(drawn, f"{split}:", total=count)
    for number, scene in enumerate(shown, start=1):
        name = f"{number:06d}.jpg"
        _, content = cv2.imencode(".jpg", scene.image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        (folder / split / name).write_bytes(content.tobytes())
        if semantic:
            path = folder / SEMANTIC / split / f"{number:06d}.png"
            path.write_bytes(cv2.imencode(".png", class_map(scene))[1].tobytes())
        images.append(dict(id=number, file_name=name, height=size[0], width=size[1]))
        for item in scene.items:
            annotations.append(dict(id=len(annotations) + 1, image_id=number, **annotation(item)))
    described = dict(
        info=dict(description=f"Digits on photographs, {split}, seed {seed}"),
        images=images,
        annotations=annotations,
        categories=[
            dict(id=index + 1, name=name, supercategory="digit")
            for index, name in enumerate(CLASSES)
        ],
    )
    write_file(annotation_file(folder, split), json.dumps(described).encode())


# ---- annotating


def annotation(item: Item) -> dict[str, Any]:
    """Returns the COCO annotation of an object.

    Args:
        item: The object.

    Returns:
        Category, box (left, top, width, height), area in pixels, crowd flag and segmentation:
        polygons, or run lengths for a crowd and for an object with holes, which polygons cannot
        represent. Both reproduce the mask exactly.
    """
    rows, columns = (np.flatnonzero(item.mask.any(axis=axis)) for axis in (1, 0))
    left, top = int(columns[0]), int(rows[0])
    outlines = None if item.crowd else polygons(item.mask)
    return dict(
        category_id=item.label + 1,
        bbox=[left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        area=int(item.mask.sum()),
        iscrowd=int(item.crowd),
        segmentation=outlines or run_lengths(item.mask),
    )


def polygons(mask: np.ndarray) -> list[list[float]] | None:
    """Traces the outlines of a mask.

    Args:
        mask: Bool (H, W).

    Returns:
        For each part of the mask, x and y of its corners alternating, in pixels; None if a part has
        holes.
    """
    fine = mask.astype(np.uint8).repeat(TRACE_SCALE, axis=0).repeat(TRACE_SCALE, axis=1)
    outlines, hierarchy = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if (hierarchy[0, :, 3] >= 0).any():  # an outline inside of another
        return None
    return [((outline.reshape(-1) + 0.5) / TRACE_SCALE).tolist() for outline in outlines]


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """Encodes a mask as COCO's uncompressed run lengths.

    Args:
        mask: Bool (H, W).

    Returns:
        ``size``, and ``counts``: pixels outside, inside, outside ..., column by column.
    """
    pixels = mask.T.reshape(-1).astype(np.int8)
    changes = np.flatnonzero(np.diff(pixels, prepend=0))
    counts = np.diff(changes, prepend=0, append=len(pixels))
    return dict(size=list(mask.shape), counts=counts.tolist())


def class_map(scene: Scene) -> np.ndarray:
    """Returns the class of every pixel of an image.

    Args:
        scene: The image with its objects.

    Returns:
        uint8 (H, W): 0 for the background, 1 to 10 for the digits, 255 (ignored) for crowds.
    """
    labels = np.full(scene.image.shape[:2], BACKGROUND, np.uint8)
    for item in scene.items:
        labels[item.mask] = IGNORED if item.crowd else item.label + 1
    return labels


# ---- checking


def check_annotations(path: str | Path) -> dict[str, int]:
    """Checks an annotation file with pycocotools.

    Args:
        path: The file.

    Returns:
        The numbers of images, objects, crowds and images without objects.

    Raises:
        ValueError: If the box or area of an object is not that of its mask, or the object lies
            outside its image.
    """
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO

    coco = COCO(str(path))
    for each in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToRLE(each)
        shape = coco.imgs[each["image_id"]]["height"], coco.imgs[each["image_id"]]["width"]
        area, box = int(coco_mask.area(mask)), coco_mask.toBbox(mask).tolist()
        found = tuple(mask["size"]), area, box
        if found != (shape, each["area"], each["bbox"]):
            raise ValueError(
                f"{path}: the mask of annotation {each['id']} has size, area and box {found}, "
                f"and the annotation says {shape, each['area'], each['bbox']}"
            )
    crowds = coco.getAnnIds(iscrowd=True)
    shown = {each["image_id"] for each in coco.anns.values()}
    return dict(
        images=len(coco.imgs),
        objects=len(coco.anns) - len(crowds),
        crowds=len(crowds),
        empty=len(coco.imgs.keys() - shown),
    )
