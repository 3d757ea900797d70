"""A generated data set, handwritten digits on photographs, with COCO's annotations or class maps.

The digits and the photographs come with scikit-learn. Training and validation images share neither
digits nor parts of the photographs.

The photographs are scikit-learn's, by danielbuechele and vultilion, under CC BY 2.0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
from rich.progress import track

from rednet.datasets.digits import Digits
from rednet.errors import UserError

CLASSES = Digits.METAINFO["classes"]
SEMANTIC = "semantic"
# 65500 is libjpeg's limit.
SIDES = (64, 65500)
MOST_DIGITS = 5
# Sides of a digit, of a digit in a crowd and of a crowd, relative to the shorter image side.
DIGIT_SIDES = (0.2, 0.45)
CROWD_DIGIT_SIDE = 0.13
CROWD_SIDES = (0.3, 0.5)
EMPTY_SHARE = 0.05
CROWD_SHARE = 0.1
LARGEST_TURN = 12.0  # degrees
ATTEMPTS = 20
JPEG_QUALITY = 95
BACKGROUND, IGNORED = 0, 255  # labels of a class map besides those of the digits
# Polygons are traced on a grid that is finer than the pixels by this factor.
TRACE_SCALE = 4

Size = tuple[int, int]
Choice = TypeVar("Choice")


class Item(NamedTuple):
    """One annotated object.

    Attributes:
        mask: Its pixels, bool (H, W).
        label: Index of its class.
        crowd: Whether it is a group of digits.
    """

    mask: np.ndarray
    label: int
    crowd: bool


class Scene(NamedTuple):
    """An image, uint8 (H, W, 3) in BGR order, and what it shows."""

    image: np.ndarray
    items: list[Item]


def write_digits_coco(
    folder: str | Path,
    images: Mapping[str, int],
    size: Size = (128, 128),
    seed: int = 0,
    overwrite: bool = False,
    semantic: bool = False,
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
    for split, count in images.items():
        if count < 1:
            raise UserError(f"there must be at least 1 image for {split}, got {count}")
        path = annotation_file(folder, split)
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists; give another folder or --overwrite")
    try:
        for split, count in images.items():
            _remove_split(Path(folder), split)
            _write_split(Path(folder), split, count, size, seed, semantic)
    except OSError as error:
        raise UserError(f"cannot write below {folder}: {error.strerror or error}") from error


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
    folder: Path, split: str, count: int, size: Size, seed: int, semantic: bool
) -> None:
    for name in (split, "annotations", *([f"{SEMANTIC}/{split}"] if semantic else [])):
        (folder / name).mkdir(parents=True, exist_ok=True)
    images: list[dict] = []
    annotations: list[dict] = []
    drawn = track(scenes(split, count, size, seed), f"{split}:", total=count)
    for number, scene in enumerate(drawn, start=1):
        name = f"{number:06d}.jpg"
        _, content = cv2.imencode(".jpg", scene.image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        (folder / split / name).write_bytes(content.tobytes())
        if semantic:
            path = folder / SEMANTIC / split / f"{number:06d}.png"
            path.write_bytes(cv2.imencode(".png", class_map(scene))[1].tobytes())
        images.append(dict(id=number, file_name=name, height=size[0], width=size[1]))
        for item in scene.items:
            identity = dict(id=len(annotations) + 1, image_id=number)
            annotations.append({**identity, **annotation(item)})
    described = dict(
        info=dict(description=f"Digits on photographs, {split}, seed {seed}"),
        images=images,
        annotations=annotations,
        categories=[
            dict(id=index + 1, name=name, supercategory="digit")
            for index, name in enumerate(CLASSES)
        ],
    )
    # Written last and renamed: where it is, the data set is whole.
    aside = annotation_file(folder, split).with_suffix(".part")
    aside.write_text(json.dumps(described))
    aside.replace(annotation_file(folder, split))


# ---- drawing


def scenes(split: str, count: int, size: Size, seed: int = 0) -> Iterator[Scene]:
    """Draws the images of a split.

    Args:
        split: ``'train'`` or ``'val'``.
        count: Number of images.
        size: Their height and width.
        seed: Random seed.

    Yields:
        The images with their objects, always the same for the same arguments.
    """
    digits = [dict(each) for each in Digits(split=split)]
    photographs = _photographs(split)
    for number in range(count):
        generator = np.random.default_rng([seed, int(split == "val"), number])
        yield _draw_scene(generator, digits, photographs, size)


def _photographs(split: str) -> list[np.ndarray]:
    """The left 70% of scikit-learn's two photographs for training, the rest for validation."""
    from sklearn.datasets import load_sample_images

    parts = []
    for photograph in load_sample_images().images:
        border = photograph.shape[1] * 7 // 10
        part = photograph[:, border:] if split == "val" else photograph[:, :border]
        parts.append(np.ascontiguousarray(part[..., ::-1]))
    return parts


def _draw_scene(
    generator: np.random.Generator,
    digits: Sequence[dict],
    photographs: Sequence[np.ndarray],
    size: Size,
) -> Scene:
    image = _background(generator, photographs, size).astype(np.float32)
    items: list[Item] = []
    if generator.random() < EMPTY_SHARE:
        return Scene(image.astype(np.uint8), items)
    if generator.random() < CROWD_SHARE:
        items.append(_draw_crowd(generator, digits, image))
    for _ in range(generator.integers(1, MOST_DIGITS + 1)):
        items += _draw_digit(generator, digits, image, items)
    return Scene(np.round(image).astype(np.uint8), items)


def _background(
    generator: np.random.Generator, photographs: Sequence[np.ndarray], size: Size
) -> np.ndarray:
    """A random part of a photograph, of the image's aspect ratio, mirrored half of the time."""
    photograph = _pick(generator, photographs)
    height, width = photograph.shape[:2]
    scale = min(height / size[0], width / size[1]) * generator.uniform(0.4, 1)
    part = max(1, int(size[0] * scale)), max(1, int(size[1] * scale))
    top = generator.integers(height - part[0] + 1)
    left = generator.integers(width - part[1] + 1)
    crop = photograph[top : top + part[0], left : left + part[1]]
    crop = crop[:, :: generator.choice([-1, 1])]
    return cv2.resize(crop, (size[1], size[0]), interpolation=cv2.INTER_AREA)


def _draw_digit(
    generator: np.random.Generator, digits: Sequence[dict], image: np.ndarray, items: list[Item]
) -> list[Item]:
    """Paints one more digit where it covers no other, if it finds such a place."""
    digit = _pick(generator, digits)
    side = int(min(image.shape[:2]) * generator.uniform(*DIGIT_SIDES))
    opacity = _opacity(generator, digit, side)
    for _ in range(ATTEMPTS):
        placed = _place(generator, opacity, image.shape[:2])
        mask = placed >= 0.5
        if not any((mask & item.mask).any() for item in items):
            _paint(generator, image, placed)
            return [Item(mask, digit["gt_label"], crowd=False)]
    return []


def _draw_crowd(generator: np.random.Generator, digits: Sequence[dict], image: np.ndarray) -> Item:
    """Paints a group of small digits of one class."""
    label = int(generator.integers(len(CLASSES)))
    members = [digit for digit in digits if digit["gt_label"] == label]
    shorter = min(image.shape[:2])
    cell = int(shorter * CROWD_DIGIT_SIDE)
    rows, columns = (
        max(2, round(shorter * generator.uniform(*CROWD_SIDES) / cell)) for _ in range(2)
    )
    opacity = np.zeros((rows * cell, columns * cell), np.float32)
    for row in range(rows):
        for column in range(columns):
            digit = _pick(generator, members)
            cells = np.s_[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
            opacity[cells] = _opacity(generator, digit, cell)
    placed = _place(generator, opacity, image.shape[:2])
    _paint(generator, image, placed)
    return Item(placed >= 0.5, label, crowd=True)


def _opacity(generator: np.random.Generator, digit: dict, side: int) -> np.ndarray:
    """Returns a digit, slightly rotated, as opacities from 0 to 1, float32 (side, side)."""
    strokes = digit["img"][..., 0].astype(np.float32) / 255
    center = (len(strokes) - 1) / 2
    turn = generator.uniform(-LARGEST_TURN, LARGEST_TURN)
    matrix = np.asarray(cv2.getRotationMatrix2D((center, center), turn, side / len(strokes)))
    matrix[:, 2] = matrix[:, 2] + (side - 1) / 2 - center
    enlarged = cv2.warpAffine(strokes, matrix, (side, side), flags=cv2.INTER_CUBIC)
    return np.clip(enlarged * 3 - 0.9, 0, 1)


def _pick(generator: np.random.Generator, choices: Sequence[Choice]) -> Choice:
    return choices[int(generator.integers(len(choices)))]


def _place(generator: np.random.Generator, opacity: np.ndarray, size: Size) -> np.ndarray:
    top = generator.integers(size[0] - opacity.shape[0] + 1)
    left = generator.integers(size[1] - opacity.shape[1] + 1)
    placed = np.zeros(size, np.float32)
    placed[top : top + opacity.shape[0], left : left + opacity.shape[1]] = opacity
    return placed


def _paint(generator: np.random.Generator, image: np.ndarray, opacity: np.ndarray) -> None:
    """Paints in a random color that is much lighter or darker than what it covers."""
    dark = image[opacity >= 0.5].mean() < 128
    color = generator.uniform(180, 255, 3) if dark else generator.uniform(0, 75, 3)
    image[...] = image + opacity[..., None] * (color - image)


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
