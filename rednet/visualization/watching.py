"""Running a model on an image while recorders listen to its layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rednet.errors import ArgumentError, UserError, first_names
from rednet.layers.base import ConvLayer, registered_layers
from rednet.visualization.images import picture_of, preprocess, size_of
from rednet.visualization.recorders import Recorder, recorder_of
from rednet.visualization.recordings import Attention, Maps, Recording, Sampling

_NAMES_SHOWN = 30
Pixel = tuple[int, int]


@dataclass(frozen=True)
class View:
    """What a model's layers computed from one image.

    Attributes:
        path: The file.
        picture: The image as the network sees it, RGB uint8 (H, W, 3), without padding.
        extent: Height and width of the network's input, padding included.
        points: (x, y) of the named points, in pixels of ``picture``.
        recordings: By the layer's dotted name; ``name (2 of 5)`` where a layer was called again.
        over_image: Names of the recordings whose maps lie over the image. The others are of regions
            or of parts of the image.
    """

    path: Path
    picture: np.ndarray
    extent: tuple[int, int]
    points: tuple[Pixel, ...]
    recordings: Mapping[str, Recording]
    over_image: frozenset[str]

    @property
    def maps(self) -> dict[str, Maps]:
        """The recordings that are maps."""
        return {name: each for name, each in self.recordings.items() if isinstance(each, Maps)}

    @property
    def attention(self) -> dict[str, Attention]:
        """The recordings that are attention."""
        every = self.recordings.items()
        return {name: each for name, each in every if isinstance(each, Attention)}


def find_layers(model: nn.Module, pattern: str = "") -> dict[str, ConvLayer]:
    """Finds this package's layers in a model, by their dotted names.

    Args:
        model: Any model.
        pattern: Regular expression that is searched in the names.

    Raises:
        ArgumentError: If the pattern is not a regular expression or matches no layer; the message
            lists what could match.
        UserError: If the model holds none of the layers.
    """
    try:
        matches = re.compile(pattern).search
    except re.error as error:
        raise ArgumentError(
            f"layers must be a regular expression, got {pattern!r}: {error}"
        ) from error
    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, ConvLayer)
    }
    if not layers:
        raise UserError(
            f"the model has none of the layers that can be drawn: {', '.join(registered_layers())}"
        )
    found = {name: layer for name, layer in layers.items() if matches(name)}
    if not found:
        listed = first_names(list(layers), _NAMES_SHOWN)
        raise ArgumentError(f"layers={pattern!r} matches none of the model's layers: {listed}")
    return found


def check_points(points: Sequence[Pixel], size: tuple[int, int], path: Path) -> None:
    """Checks that points lie in an image.

    Raises:
        ArgumentError: If one does not.
    """
    height, width = size
    for x, y in points:
        if not (0 <= x < width and 0 <= y < height):
            raise ArgumentError(
                f"points: {x},{y} lies outside of {path}, which the network sees with "
                f"{width} x {height} pixels (x from 0 to {width - 1}, y from 0 to {height - 1})"
            )


@contextmanager
def listening(layers: Mapping[str, nn.Module], sampling: Sampling) -> Iterator[dict[str, Recorder]]:
    """Gives the layers' recorders, which listen until the context ends."""
    recorders = {}
    for name, layer in layers.items():
        recorder = recorder_of(layer, sampling)
        if recorder is not None:
            recorders[name] = recorder
    handles = [handle for recorder in recorders.values() for handle in recorder.listen()]
    try:
        yield recorders
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def view(
    model: nn.Module,
    sample: Mapping[str, Any],
    path: Path,
    layers: Mapping[str, nn.Module],
    points: Sequence[Pixel] = (),
    lattice: bool = False,
) -> View:
    """Runs the model on an image, in the mode that it is in, and gives what its layers computed.

    Args:
        model: A classifier, detector or segmentor of OpenMMLab's.
        sample: The image, as an :class:`ImageReader` reads it; it may be given again.
        path: The file that it was read from.
        layers: The layers to look at.
        points: (x, y) at which kernels are kept, in pixels of the image that the network sees.
        lattice: Whether to keep kernels on a regular lattice too.

    Raises:
        ArgumentError: If a point lies outside of the image.
    """
    check_points(points, size_of(sample), path)
    batch = preprocess(model, sample)
    height, width = (int(side) for side in batch["inputs"].shape[-2:])
    shares = tuple(((x + 0.5) / width, (y + 0.5) / height) for x, y in points)
    with listening(layers, Sampling(shares, lattice)) as recorders, _calls_of(model) as calls:
        model(**batch, mode="predict")
    whole = calls in ([], [(1, height, width)])
    recordings = dict(_named(recorders))
    over_image = (name for name, each in recordings.items() if whole and _covers(name, each))
    return View(
        path=path,
        picture=picture_of(sample),
        extent=(height, width),
        points=tuple(points),
        recordings=recordings,
        over_image=frozenset(over_image),
    )


@contextmanager
def _calls_of(model: nn.Module) -> Iterator[list[tuple[int, ...]]]:
    """Lists the images, height and width of each call of the model's backbone, if it has one."""
    calls: list[tuple[int, ...]] = []
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        yield calls
        return

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        calls.append((len(inputs[0]), *map(int, inputs[0].shape[-2:])))

    handle = backbone.register_forward_pre_hook(note)
    try:
        yield calls
    finally:
        handle.remove()


def _named(recorders: Mapping[str, Recorder]) -> Iterator[tuple[str, Recording]]:
    for name, recorder in recorders.items():
        count = len(recorder.recordings)
        for index, recording in enumerate(recorder.recordings, start=1):
            yield (name if count == 1 else f"{name} ({index} of {count})"), recording


def _covers(name: str, recording: Recording) -> bool:
    """Whether the recording is of a whole image: a detector's RoI head works on regions."""
    return isinstance(recording, Maps) and recording.batch == 1 and not name.startswith("roi_head.")


def weights_of(layers: Mapping[str, nn.Module]) -> dict[str, Mapping[str, np.ndarray]]:
    """What the layers' weights amount to, of those that have something to show."""
    recorders = {name: recorder_of(layer) for name, layer in layers.items()}
    panels = {name: each.weights() for name, each in recorders.items() if each is not None}
    return {name: each for name, each in panels.items() if each}
