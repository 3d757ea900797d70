"""What several images show together, and how it is drawn and saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rednet.visualization.drawing import (
    draw_attention,
    draw_kernels,
    draw_maps,
    draw_overview,
    draw_weights,
)
from rednet.visualization.watching import View

Picture = tuple[str, np.ndarray]
Heads = dict[str, np.ndarray]


def pictures_of(view: View, limit: int) -> Iterator[Picture]:
    """Draws the maps of an image.

    Args:
        view: What a model's layers computed from the image.
        limit: Groups of a layer, or layers in an overview, to draw at most.

    Yields:
        The name of a picture and the picture, RGB uint8 (height, width, 3): for each layer its
        maps, and its kernels at the points; then an overview of all layers with the same quantity.
    """
    over_image: dict[str, list[str]] = {}
    for name, maps in view.maps.items():
        yield f"{_plain(name)}.maps", draw_maps(view, name, limit)
        if maps.kernels_at_points is not None and len(maps.kernels_at_points):
            yield f"{_plain(name)}.kernels", draw_kernels(view, name, limit)
        if name in view.over_image:
            over_image.setdefault(maps.unit, []).append(name)
    for unit, names in over_image.items():
        yield f"overview.{unit}", draw_overview(view, names, limit)


def _plain(name: str) -> str:
    """A recording's name without the characters that a file name had better not have."""
    return name.replace(" (", ".call").replace(" of ", "of").replace(")", "")


def numbers_of(view: View) -> dict[str, np.ndarray]:
    """The arrays behind the pictures of an image, by ``layer/what``."""
    numbers = {"points": np.array(view.points, dtype=np.int64).reshape(-1, 2)}
    for name, maps in view.maps.items():
        numbers[f"{name}/maps"] = maps.values
        if maps.kernels_at_points is not None:
            numbers[f"{name}/kernels"] = maps.kernels_at_points
    for name, attention in view.attention.items():
        numbers.update((f"{name}/{head}", values) for head, values in attention.heads.items())
    return numbers


class AttentionReport:
    """Collects attention over images, and averages it by class where all images have one."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[str, Mapping[str, np.ndarray]]]] = {}
        self.classes: dict[str, str] = {}

    def add(self, view: View, name: str, label: str | None) -> None:
        """Adds an image under a name that no other image has, and its class if it has one."""
        if label is not None:
            self.classes[name] = label
        for layer, attention in view.attention.items():
            self.rows.setdefault(layer, []).append((name, attention.heads))

    def layers(self) -> Iterator[tuple[str, list[str], Heads]]:
        """The layers with the names of their images and (N, M) for each head."""
        for layer, rows in self.rows.items():
            heads = {head: np.stack([each[head] for _, each in rows]) for head in rows[0][1]}
            yield layer, [name for name, _ in rows], heads

    def pictures(self, limit: int) -> Iterator[Picture]:
        """Draws the attention of each layer, by class where all images have one."""
        for layer, names, heads in self.layers():
            row_name, rows = "image", names
            if all(name in self.classes for name in names):
                row_name = "class"
                rows, heads = _by_class([self.classes[name] for name in names], heads)
            picture = draw_attention(layer, heads, rows, limit, row_name)
            yield f"{_plain(layer)}.attention", picture

    def numbers(self) -> Heads:
        """The arrays behind the pictures: ``layer/head``, ``layer/images``, ``layer/classes``."""
        numbers = {}
        for layer, names, heads in self.layers():
            numbers.update({f"{layer}/{head}": values for head, values in heads.items()})
            numbers[f"{layer}/images"] = np.array(names)
            numbers[f"{layer}/classes"] = np.array([self.classes.get(name, "") for name in names])
        return numbers


def _by_class(labels: Sequence[str], heads: Heads) -> tuple[list[str], Heads]:
    """Averages over the images of each class."""
    classes = sorted(set(labels))
    members = [np.array([label == each for label in labels]) for each in classes]
    means = {
        head: np.stack([values[member].mean(0) for member in members])
        for head, values in heads.items()
    }
    return [f"{each} ({int(n.sum())})" for each, n in zip(classes, members, strict=True)], means


def weight_pictures(weights: Mapping[str, Mapping[str, np.ndarray]]) -> Iterator[Picture]:
    """Draws what the layers' weights amount to."""
    for name, panels in weights.items():
        yield f"{name}.weights", draw_weights(name, panels)


def weight_numbers(weights: Mapping[str, Mapping[str, np.ndarray]]) -> Heads:
    """The arrays behind the pictures of weights, by ``layer/kernel``."""
    return {
        f"{name}/{kernel}": values
        for name, each in weights.items()
        for kernel, values in each.items()
    }


def save_numbers(path: Path, numbers: Mapping[str, np.ndarray]) -> None:
    """Saves arrays by their names as a compressed ``.npz`` file."""
    arrays: dict[str, Any] = dict(numbers)
    np.savez_compressed(path, **arrays)
