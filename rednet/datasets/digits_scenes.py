"""Scenes of handwritten digits on photographs, both of scikit-learn.

Training and validation scenes share neither digits nor parts of the photographs. The photographs
are by danielbuechele and vultilion, under CC BY 2.0.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import cv2
import numpy as np

from rednet.datasets.digits import Digits

CLASSES = Digits.METAINFO["classes"]
MOST_DIGITS = 5
# Sides of a digit, of a digit in a crowd and of a crowd, relative to the shorter image side.
DIGIT_SIDES = (0.2, 0.45)
CROWD_DIGIT_SIDE = 0.13
CROWD_SIDES = (0.3, 0.5)
EMPTY_SHARE = 0.05
CROWD_SHARE = 0.1
LARGEST_TURN = 12.0  # degrees
ATTEMPTS = 20
# Side of a cut-out square, relative to the digit's longer side.
CROP_SIDE = 1.5

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


def scenes(
    split: str, count: int, size: Size, seed: int = 0, most_digits: int = MOST_DIGITS
) -> Iterator[Scene]:
    """Draws the images of a split.

    Args:
        split: ``'train'`` or ``'val'``.
        count: Number of images.
        size: Their height and width.
        seed: Random seed.
        most_digits: Digits that are drawn in an image at most, besides a crowd.

    Yields:
        The images with their objects, always the same for the same arguments.
    """
    digits = [dict(each) for each in Digits(split=split)]
    photographs = _photographs(split)
    for number in range(count):
        generator = np.random.default_rng([seed, int(split == "val"), number])
        yield _draw_scene(generator, digits, photographs, size, most_digits)


def crops(split: str, side: int, seed: int = 0) -> Iterator[tuple[np.ndarray, int]]:
    """Cuts the digits, one by one, out of scenes of 128 x 128 pixels.

    Args:
        split: ``'train'`` or ``'val'``.
        side: Height and width of the images.
        seed: Random seed of the scenes.

    Yields:
        Without end, an image, uint8 (side, side, 3) in BGR order, and the label of the digit in its
        middle; others may reach into it.
    """
    for scene in scenes(split, sys.maxsize, (128, 128), seed):
        for item in scene.items:
            if not item.crowd:
                yield _crop(scene.image, item.mask, side), item.label


def _crop(image: np.ndarray, mask: np.ndarray, side: int) -> np.ndarray:
    """A square around an object, moved into the image."""
    ends = [(line.min(), line.max()) for line in np.nonzero(mask)]
    longest = max(last - first for first, last in ends)
    size = min(*mask.shape, int(CROP_SIDE * longest) + 1)
    top, left = (
        int(np.clip((first + last + 1 - size) // 2, 0, length - size))
        for (first, last), length in zip(ends, mask.shape, strict=True)
    )
    square = image[top : top + size, left : left + size]
    return cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA)


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
    most_digits: int,
) -> Scene:
    image = _background(generator, photographs, size).astype(np.float32)
    items: list[Item] = []
    if generator.random() < EMPTY_SHARE:
        return Scene(image.astype(np.uint8), items)
    if generator.random() < CROWD_SHARE:
        items.append(_draw_crowd(generator, digits, image))
    for _ in range(generator.integers(1, most_digits + 1)):
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
