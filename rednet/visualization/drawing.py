"""Drawing recordings with matplotlib, as RGB images for mmengine's ``Visualizer``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from rednet.visualization.recordings import Maps
from rednet.visualization.watching import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEAT, SIGNED, SHARES = "turbo", "RdBu_r", "viridis"
OPACITY = 0.55
_COLUMNS = 5
_CELL = 2.1  # inches
_DPI = 110
_NUMBERED_CELLS = 9
_GRAY, _WARNING = "#555555", "#a03030"
_HEAT_LEGEND = "blue: lowest value of a map, red: highest"
_SIGNED_LEGEND = "red: positive, blue: negative, white: zero"


def draw_maps(view: View, name: str, limit: int) -> np.ndarray:
    """Draws a layer's maps, over the image where they cover it.

    Args:
        view: What was computed from the image.
        name: The recording to draw.
        limit: Maps to draw at most.

    Returns:
        RGB, uint8 (height, width, 3).
    """
    maps = view.maps[name]
    over = name in view.over_image
    shown = maps.values[:limit]
    size = view.picture.shape[:2] if over else shown.shape[-2:]
    title = f"{name}: {maps.quantity}"
    notes = _footnotes(_HEAT_LEGEND, maps, limit, over)
    figure, cells = _grid(len(shown) + 1, title, size[0] / size[1], notes)
    _show_picture(cells[0], view, range(len(view.points)))
    for index, (axes, values) in enumerate(zip(cells[1:], shown, strict=True)):
        _show_map(axes, view, values, over)
        axes.set_title(f"{maps.unit} {index}: {_range(values)}", fontsize=8)
    return _to_image(figure)


def draw_overview(view: View, names: Sequence[str], limit: int) -> np.ndarray:
    """Draws the mean of each layer's maps over the image, one cell for each layer.

    Args:
        view: What was computed from the image.
        names: Recordings that cover the image.
        limit: Layers to draw at most.

    Returns:
        RGB, uint8 (height, width, 3).
    """
    shown = names[:limit]
    notes = [_HEAT_LEGEND]
    if len(names) > limit:
        notes.append(f"{len(names) - limit} of {len(names)} layers left out")
    first = view.maps[shown[0]]
    height, width = view.picture.shape[:2]
    title = f"{first.quantity}, mean over each layer's {_plural(first.unit)}"
    figure, cells = _grid(len(shown) + 1, title, height / width, notes)
    _show_picture(cells[0], view)
    for axes, name in zip(cells[1:], shown, strict=True):
        values = view.maps[name].values.mean(0)
        _show_map(axes, view, values, True)
        axes.set_title(f"{name}\n{values.shape[0]} x {values.shape[1]}", fontsize=7)
    return _to_image(figure)


def _footnotes(legend: str, maps: Maps, limit: int, over: bool) -> list[str]:
    notes, count = [legend], len(maps.values)
    if count > limit:
        notes.append(f"{count - limit} of {count} {_plural(maps.unit)} left out")
    if maps.batch > 1:
        notes.append(f"the first of {maps.batch} regions")
    elif not over:
        notes.append("of a region or a part of the image")
    return notes


def _grid(
    count: int, title: str, aspect: float, footnotes: Sequence[str], columns: int = _COLUMNS
) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` cells of an aspect (height / width), a title and footnotes.

    The first footnote says what the colors mean, the others what is not drawn.
    """
    from matplotlib.figure import Figure

    columns = min(count, columns)
    rows = ceil(count / columns)
    height = min(max(aspect, 0.35), 2.5) * _CELL + 0.35
    figure = Figure(figsize=(columns * _CELL, rows * height + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=10, fontweight="bold")
    cells = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in cells:
        axes.set_axis_off()
    color = _WARNING if len(footnotes) > 1 else _GRAY
    figure.supxlabel("; ".join(footnotes), fontsize=8, color=color)
    return figure, cells[:count]


def _show_picture(axes: Axes, view: View, marked: Sequence[int] = ()) -> None:
    """The image, with the points of these indices."""
    axes.imshow(view.picture)
    height, width = view.picture.shape[:2]
    axes.set_title(f"the image, {width} x {height}", fontsize=8)
    for index in marked:
        axes.plot(*view.points[index], "o", markersize=7, mfc="none", mec="white", mew=2.5)
        axes.plot(*view.points[index], "o", markersize=7, mfc="none", mec="red", mew=1.2)


def _show_map(axes: Axes, view: View, values: np.ndarray, over: bool) -> None:
    if not over:
        axes.imshow(values, cmap=HEAT)
        return
    axes.imshow(view.picture.mean(2), cmap="gray")
    axes.imshow(enlarge(values, view), cmap=HEAT, alpha=OPACITY)


def enlarge(values: np.ndarray, view: View) -> np.ndarray:
    """Resizes a map (Ho, Wo) to the picture: it covers the padded input, which is then cropped."""
    resized = F.interpolate(torch.from_numpy(values)[None, None], view.extent, mode="bilinear")
    height, width = view.picture.shape[:2]
    return resized[0, 0, :height, :width].numpy()


def _range(values: np.ndarray) -> str:
    return f"{values.min():.2g} to {values.max():.2g}"


# ---- kernels


def draw_kernels(view: View, name: str, limit: int) -> np.ndarray:
    """Draws the generated kernels of a layer at the named points, one row for each point.

    Args:
        view: What was computed from the image, with points.
        name: A recording with kernels.
        limit: Groups to draw at most.

    Returns:
        RGB, uint8 (height, width, 3).
    """
    maps = view.maps[name]
    assert maps.kernels_at_points is not None
    kernels = maps.kernels_at_points[:, :limit]
    points, groups, height, width = kernels.shape
    count = points * (groups + 1)
    title = f"{name}: the {height} x {width} kernels at {points} point{'s' * (points > 1)}"
    notes = _footnotes(_SIGNED_LEGEND, maps, limit, over=name in view.over_image)
    figure, cells = _grid(count, title, 1, notes, groups + 1)
    for row in range(points):
        picture, *own = cells[row * (groups + 1) : (row + 1) * (groups + 1)]
        x, y = view.points[row]
        _show_picture(picture, view, [row])
        picture.set_title(f"point {row + 1}: x {x}, y {y}", fontsize=8)
        for group, axes in enumerate(own):
            kernel = kernels[row, group]
            largest = max(float(np.abs(kernel).max()), 1e-12)
            axes.imshow(kernel, cmap=SIGNED, vmin=-largest, vmax=largest)
            axes.set_title(f"{maps.unit} {group}: up to {largest:.2g}", fontsize=8)
    return _to_image(figure)


# ---- attention and weights


def draw_attention(
    name: str,
    heads: Mapping[str, np.ndarray],
    rows: Sequence[str],
    limit: int,
    row_name: str = "image",
) -> np.ndarray:
    """Draws a layer's attention: a row for each image or class, a column for each entry.

    Args:
        name: The layer.
        heads: (R, M) for each head.
        rows: The R names of the rows.
        limit: Rows to draw at most.
        row_name: What a row is, ``'image'`` or ``'class'``.

    Returns:
        RGB, uint8 (height, width, 3).
    """
    from matplotlib.figure import Figure

    shown = list(rows[:limit])
    row_height = 0.24 * len(shown) + 0.9
    figure = Figure(figsize=(8, row_height * len(heads) + 0.6), layout="constrained")
    figure.suptitle(f"{name}: attention by {row_name}", fontsize=10, fontweight="bold")
    panels = figure.subplots(len(heads), 1, squeeze=False)[:, 0]
    for axes, (head, values) in zip(panels, heads.items(), strict=True):
        picture = axes.imshow(values[:limit], cmap=SHARES, aspect="auto", interpolation="nearest")
        axes.set_title(f"{head} ({values.shape[1]})", fontsize=9, loc="left")
        axes.set_yticks(range(len(shown)), shown, fontsize=7)
        _label_columns(axes, values[:limit])
        figure.colorbar(picture, ax=axes, pad=0.01)
    if len(rows) > limit:
        text = f"{len(rows) - limit} of {len(rows)} {_plural(row_name)} left out"
        figure.supxlabel(text, fontsize=8, color=_WARNING)
    return _to_image(figure)


def _label_columns(axes: Axes, values: np.ndarray) -> None:
    columns = values.shape[1]
    if columns > _NUMBERED_CELLS:
        axes.tick_params(axis="x", labelsize=7)
        return
    axes.set_xticks(range(columns), map(str, range(columns)), fontsize=7)
    middle = (values.min() + values.max()) / 2
    for (row, column), value in np.ndenumerate(values):
        color = "black" if value > middle else "white"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)


def draw_weights(name: str, panels: Mapping[str, np.ndarray]) -> np.ndarray:
    """Draws the magnitudes of a layer's kernels, one panel for each kernel.

    Args:
        name: The layer.
        panels: (Kh, Kw) for each kernel.

    Returns:
        RGB, uint8 (height, width, 3).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(panels), 3.1), layout="constrained")
    figure.suptitle(f"{name}: mean magnitude of the weights", fontsize=10, fontweight="bold")
    largest = max(max(float(each.max()) for each in panels.values()), 1e-12)
    for axes, (title, values) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        axes.imshow(values, cmap=SHARES, vmin=0, vmax=largest)
        axes.set_title(title, fontsize=8, wrap=True)
        axes.set_axis_off()
        for (row, column), value in np.ndenumerate(values):
            color = "black" if value > 0.6 * largest else "white"
            size = 8 if max(values.shape) <= 3 else 6
            axes.text(
                column, row, f"{value:.2g}", ha="center", va="center", fontsize=size, color=color
            )
    return _to_image(figure)


def _plural(word: str) -> str:
    return f"{word}es" if word.endswith(("s", "ch")) else f"{word}s"


def _to_image(figure: Any) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
