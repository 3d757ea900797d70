"""Draw docs/pictures/involution.svg: how involution differs from convolution.

Usage: python docs/scripts/draw_operator.py [FILE]
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

TARGET = Path(__file__).parents[1] / "pictures" / "involution.svg"
CELL = 0.26
PIXELS = 7
TAPS = 3
INK, MUTED, LINE = "#1d2733", "#5b6673", "#aab4bf"
BLUE, ORANGE, GREEN = "#2f6db3", "#e08a1e", "#3d9a5f"
# Two output pixels, as (column, row) of the image.
PLACES = ((2, 4), (4, 2))
PLACE_COLORS = (BLUE, ORANGE)


def tint(color: str, share: float) -> tuple[float, ...]:
    """The color mixed with white; ``share`` is the color's part."""
    return tuple(1 - share * (1 - channel) for channel in to_rgb(color))


def grid(axes: Axes, left: float, bottom: float, side: int, colors: dict | None = None) -> None:
    """Draws side x side cells; ``colors`` maps (column, row) to a face color."""
    for column in range(side):
        for row in range(side):
            face = (colors or {}).get((column, row), "white")
            corner = (left + column * CELL, bottom + row * CELL)
            axes.add_patch(Rectangle(corner, CELL, CELL, facecolor=face, edgecolor=LINE, lw=0.7))


def window(axes: Axes, left: float, bottom: float, place: tuple[int, int], color: str) -> None:
    """Outlines the TAPS x TAPS window around a pixel."""
    reach = TAPS // 2
    corner = (left + (place[0] - reach) * CELL, bottom + (place[1] - reach) * CELL)
    side = TAPS * CELL
    axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=color, lw=2.2))


def kernel(axes: Axes, left: float, bottom: float, color: str, shares: str) -> None:
    """Draws a kernel; ``shares`` has one digit, 1 to 9, for each tap: how strong its color is."""
    colors = {
        (index % TAPS, index // TAPS): tint(color, int(digit) / 9)
        for index, digit in enumerate(shares)
    }
    grid(axes, left, bottom, TAPS, colors)
    side = TAPS * CELL
    axes.add_patch(Rectangle((left, bottom), side, side, fill=False, edgecolor=color, lw=2.2))


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    """Draws an arrow."""
    style = dict(arrowstyle="-|>", mutation_scale=12, lw=1.4, shrinkA=0, shrinkB=0)
    axes.add_patch(FancyArrowPatch(start, end, color=color, **style))


def box(axes: Axes, left: float, bottom: float, text: str) -> None:
    """Draws a rounded box with centered text, 1.7 x 0.66."""
    axes.add_patch(
        FancyBboxPatch(
            (left, bottom),
            1.7,
            0.66,
            boxstyle="round,pad=0.04",
            facecolor="#f3f5f8",
            edgecolor=LINE,
        )
    )
    axes.text(left + 0.85, bottom + 0.33, text, ha="center", va="center", fontsize=9, color=INK)


def row(axes: Axes, bottom: float, title: str, caption: str) -> None:
    """Draws what both operators have: image, windows, output and the two texts."""
    axes.text(0, bottom + 2.15, title, fontsize=13, fontweight="bold", color=INK)
    axes.text(1.75, bottom + 2.15, caption, fontsize=10, color=MUTED)
    centers = dict(zip(PLACES, (tint(color, 0.75) for color in PLACE_COLORS), strict=True))
    grid(axes, 0, bottom, PIXELS, centers)
    grid(axes, 7.6, bottom, PIXELS, centers)
    for place, color in zip(PLACES, PLACE_COLORS, strict=True):
        window(axes, 0, bottom, place, color)
    side = PIXELS * CELL
    axes.text(side / 2, bottom - 0.22, "input", ha="center", fontsize=9, color=MUTED)
    axes.text(7.6 + side / 2, bottom - 0.22, "output", ha="center", fontsize=9, color=MUTED)


def convolution(axes: Axes, bottom: float) -> None:
    """Draws the upper row."""
    row(axes, bottom, "Convolution", "one learned kernel for all pixels, another for each channel")
    middle = bottom + 0.9
    kernel(axes, 4.35, middle - TAPS * CELL / 2, GREEN, "284696375")
    axes.text(4.74, middle - 0.62, "learned weight", ha="center", fontsize=9, color=MUTED)
    for place, color in zip(PLACES, PLACE_COLORS, strict=True):
        height = bottom + (place[1] + 0.5) * CELL
        arrow(axes, (1.95, height), (4.25, middle), color)
        arrow(axes, (5.2, middle), (7.5, height), color)


def involution(axes: Axes, bottom: float) -> None:
    """Draws the lower row."""
    row(
        axes,
        bottom,
        "Involution",
        "each pixel generates its own kernel, shared by the channels of a group",
    )
    for place, color, offset, shares in zip(
        PLACES, PLACE_COLORS, (1.1, 0.06), ("148259673", "962841375"), strict=True
    ):
        middle = bottom + offset + 0.33
        height = bottom + (place[1] + 0.5) * CELL
        arrow(axes, (1.95, height), (2.5, middle), color)
        box(axes, 2.6, bottom + offset, "1 x 1 conv, norm,\nReLU, 1 x 1 conv")
        arrow(axes, (4.4, middle), (4.95, middle), color)
        kernel(axes, 5.05, middle - TAPS * CELL / 2, color, shares)
        axes.text(6.1, middle, "$\\odot$ window, sum", va="center", fontsize=8.5, color=MUTED)
        arrow(axes, (7.3, middle), (7.55, height), color)


def main(path: Path) -> None:
    """Writes the picture."""
    matplotlib.rcParams["svg.hashsalt"] = "rednet"  # the same file from every run
    figure = Figure(figsize=(9.6, 5.3), layout="constrained")
    axes = figure.subplots()
    convolution(axes, 3.05)
    involution(axes, 0)
    axes.set(xlim=(-0.15, 9.6), ylim=(-0.35, 5.5), aspect="equal")
    axes.axis("off")
    figure.savefig(
        path, facecolor="white", metadata={"Date": None} if path.suffix == ".svg" else {}
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET)
