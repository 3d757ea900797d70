"""Checks of annotation files of COCO's format."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rednet.errors import UserError, first_names

_LISTS = ("images", "annotations", "categories")


def check_coco(path: str, classes: Sequence[str], *, keeps_empty: bool = False) -> list[str]:
    """Checks an annotation file of COCO's format.

    Args:
        path: The JSON file.
        classes: The classes that the data set looks for, by name.
        keeps_empty: Whether the config asks for images without boxes
            (``filter_cfg.filter_empty_gt=False``), so that classes may be missing.

    Returns:
        Lines about classes that are missing and boxes that mmdet leaves out, if there are such.

    Raises:
        UserError: If mmdet would find no annotations in it, or wrong ones.
    """
    content = _read(path)
    _check_ids(path, content)
    missing = _missing_classes(path, content["categories"], classes)
    if missing and not keeps_empty:
        raise UserError(*missing)
    _check_references(path, content)
    return [*missing, *_check_boxes(path, content)]


def _read(path: str) -> dict[str, list[dict[str, Any]]]:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError) as error:  # of JSON and of its encoding
        raise UserError(f"{path} is not a JSON file: {error}") from error
    for name in _LISTS:
        entries = content.get(name) if isinstance(content, Mapping) else None
        if not isinstance(entries, list) or not all(isinstance(each, Mapping) for each in entries):
            raise UserError(f"{path} is not of COCO's format: {name!r} must be a list of dicts")
        if not entries:
            raise UserError(f"{path} has no {name}")
    return content


def _check_ids(path: str, content: Mapping[str, list[dict[str, Any]]]) -> None:
    for name in _LISTS:
        ids = [entry.get("id") for entry in content[name]]
        if None in ids:
            raise UserError(f"{path}: {name}[{ids.index(None)}] has no id")
        repeated = [key for key, count in Counter(ids).items() if count > 1]
        if repeated:
            raise UserError(
                f"{path}: {len(repeated)} ids of {name} are used several times, first {repeated[0]}"
            )


def _missing_classes(path: str, categories: Iterable[Mapping], classes: Sequence[str]) -> list[str]:
    found = [str(each.get("name")) for each in categories]
    missing = [name for name in classes if name not in found]
    if not missing:
        return []
    return [
        f"{path} has no categories named {first_names(missing, 5)}, which are {len(missing)} of "
        f"the data set's {len(classes)} classes; it has {first_names(found, 5)}: set "
        "metainfo.classes of the data sets"
    ]


def _check_references(path: str, content: Mapping[str, list[dict[str, Any]]]) -> None:
    for key, name in (("image_id", "images"), ("category_id", "categories")):
        known = {entry["id"] for entry in content[name]}
        lost = [each for each in content["annotations"] if each.get(key) not in known]
        if lost:
            raise UserError(
                f"{path}: {len(lost)} annotations have a {key} that is none of {name}, first "
                f"annotation {lost[0]['id']} with {lost[0].get(key)!r}"
            )


def _check_boxes(path: str, content: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    sizes = {each["id"]: (each.get("width"), each.get("height")) for each in content["images"]}
    wrong = [key for key, size in sizes.items() if not all(_is_positive(each) for each in size)]
    if wrong:
        raise UserError(
            f"{path}: {len(wrong)} images have no width and height above 0, first image {wrong[0]} "
            f"with {sizes[wrong[0]]}"
        )
    boxes = {each["id"]: each.get("bbox") for each in content["annotations"]}
    broken = [key for key, box in boxes.items() if not _is_box(box)]
    if broken:
        raise UserError(
            f"{path}: {len(broken)} annotations have no bbox of four finite numbers, first "
            f"annotation {broken[0]} with {boxes[broken[0]]}"
        )
    without = [each["id"] for each in content["annotations"] if "area" not in each]
    if without:
        raise UserError(
            f"{path}: {len(without)} annotations have no area, first annotation {without[0]}"
        )
    images = {each["id"]: sizes[each["image_id"]] for each in content["annotations"]}
    unused = [key for key, box in boxes.items() if not _has_pixels(box, images[key])]
    if len(unused) == len(boxes):
        raise UserError(f"{path}: no box covers a pixel, first {boxes[unused[0]]}")
    if not unused:
        return []
    return [
        f"{path}: {len(unused)} of {len(boxes)} boxes are empty or outside their image and not "
        f"used, first annotation {unused[0]} with {boxes[unused[0]]}"
    ]


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and value > 0


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(each, (int, float)) and math.isfinite(each) for each in box)
    )


def _has_pixels(box: Any, size: tuple[Any, Any]) -> bool:
    """Whether a box (left, top, width, height) has a part in its image and sides of a pixel."""
    left, top, width, height = box
    across = min(left + width, size[0]) - max(left, 0)
    down = min(top + height, size[1]) - max(top, 0)
    return min(width, height) >= 1 and across > 0 and down > 0
