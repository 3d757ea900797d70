"""Draw docs/pictures/rooms.svg: the folders of the package and which of them import which.

The arrows are read from the imports in the source. An arrow that follows from others is left out.

Usage: python docs/scripts/draw_rooms.py [FILE]
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(__file__).parents[1] / "pictures" / "rooms.svg"
INK, LINE, FACE, ARROW = "#1d2733", "#aab4bf", "#f3f5f8", "#2f6db3"
WIDTH, HEIGHT = 1.5, 0.55
COLUMN, ROW = 2.0, 1.15

# Column and row, counted from below.
PLACES = {
    "tools": (0, 5),
    "cli": (-1.5, 4),
    "datasets": (-0.5, 4),
    "deploy": (0.5, 4),
    "engine": (1.5, 4),
    "models": (0.5, 3),
    "checkpoint": (-0.5, 2),
    "layers": (-0.5, 1),
    "ops": (-0.5, 0),
}
FIRST_FREE_COLUMN = 2.5

Graph = dict[str, set[str]]


def rooms() -> dict[str, list[Path]]:
    """The files of each folder of rednet/, and those of tools/."""
    folders = {
        folder.name: sorted(folder.rglob("*.py"))
        for folder in sorted((ROOT / "rednet").iterdir())
        if (folder / "__init__.py").exists()
    }
    return {**folders, "tools": sorted((ROOT / "tools").rglob("*.py"))}


def imported_names(file: Path) -> Iterator[str]:
    """The dotted names that a file imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def imports() -> Graph:
    """For each room, the other rooms that it imports."""
    files = rooms()
    graph: Graph = {room: set() for room in files}
    for room, paths in files.items():
        for name in (name for path in paths for name in imported_names(path)):
            package, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if package == "rednet" and target in files and target != room:
                graph[room].add(target)
    return graph


def below(graph: Mapping[str, set[str]], room: str) -> set[str]:
    """The rooms that a room reaches."""
    reached: set[str] = set()
    for target in graph[room]:
        reached |= {target} | below(graph, target)
    return reached


def direct(graph: Graph) -> Graph:
    """The graph without the arrows that follow from others."""
    return {
        room: {
            target
            for target in targets
            if not any(target in below(graph, other) for other in targets - {target})
        }
        for room, targets in graph.items()
    }


def places(graph: Graph) -> dict[str, tuple[float, float]]:
    """The center of each room; one without a place of its own goes to the right of the others."""
    others = [room for room in graph if room not in PLACES]
    columns = {room: (FIRST_FREE_COLUMN + index, 4) for index, room in enumerate(others)}
    return {
        room: (column * COLUMN, row * ROW) for room, (column, row) in {**PLACES, **columns}.items()
    }


def main(path: Path) -> None:
    """Writes the picture."""
    matplotlib.rcParams["svg.hashsalt"] = "rednet"  # the same file from every run
    graph = imports()
    centers = places(graph)
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    for room, (x, y) in centers.items():
        corner = (x - WIDTH / 2, y - HEIGHT / 2)
        style = dict(boxstyle="round,pad=0.04", facecolor=FACE, edgecolor=LINE)
        axes.add_patch(FancyBboxPatch(corner, WIDTH, HEIGHT, zorder=2, **style))
        axes.text(x, y, room, ha="center", va="center", fontsize=12, color=INK, zorder=3)
    for room, targets in direct(graph).items():
        for target in targets:
            (x, y), (end_x, end_y) = centers[room], centers[target]
            start, end = (x, y - HEIGHT / 2 - 0.05), (end_x, end_y + HEIGHT / 2 + 0.05)
            style = dict(arrowstyle="-|>", mutation_scale=14, lw=1.3, color=ARROW, zorder=1)
            axes.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **style))
    left, right = (edge(x for x, _ in centers.values()) for edge in (min, max))
    axes.set(xlim=(left - WIDTH, right + WIDTH), ylim=(-0.5, 5 * ROW + 0.5))
    axes.axis("off")
    metadata = {"Date": None} if path.suffix == ".svg" else {}
    figure.savefig(path, facecolor="white", metadata=metadata)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET)
