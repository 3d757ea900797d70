"""Draw what the layers of a trained model compute from images.

Involution: the sum of the kernel at each pixel as a heat map, and the kernels at points. SAConv2d:
its switch. ODConv2d, CondConv2d, DynamicConv2d and SPConv2d: their attention, for each image or,
with a folder of class folders, averaged by class. ACBlock, SAConv2d, SPConv2d, ConvAWS2d: the
magnitudes of their kernels. Works with classifiers, detectors and segmentors. Writes PNG files, and
the numbers of every image in .npz files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.visualization import Visualizer

from rednet.checkpoint.reading import require_weights_only
from rednet.cli.arguments import config_parser, positive
from rednet.cli.command import run
from rednet.cli.config import read_config
from rednet.cli.model import build_model, load_weights, with_preprocessor
from rednet.cli.paths import check_checkpoint, check_output
from rednet.errors import ArgumentError, UserError
from rednet.visualization import find_layers, view
from rednet.visualization.html import write_page
from rednet.visualization.images import ImageReader, find_images, size_of
from rednet.visualization.report import (
    AttentionReport,
    numbers_of,
    pictures_of,
    save_numbers,
    weight_numbers,
    weight_pictures,
)
from rednet.visualization.watching import View, check_points, weights_of

PAGE = "layers.html"


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws what the arguments ask for."""
    args = _parse(arguments)
    points = [_point(text) for text in args.points]
    files = find_images(args.images)
    check_output(args.out, "--out", folder=True)
    check_checkpoint(args.checkpoint, "the checkpoint")
    require_weights_only()
    config, _ = read_config(args.config, args.cfg_options)
    model = build_model(with_preprocessor(config)).eval()
    layers = find_layers(model, args.layers)
    reader = ImageReader(config)
    for file in files:  # before the first result is computed
        check_points(points, size_of(reader(file.path)), file.path)
    load_weights(model, args.checkpoint)

    args.out.mkdir(parents=True, exist_ok=True)
    output = _Output(args.out)
    attention, views = AttentionReport(), []
    for index, file in enumerate(files):
        drawn = index < args.draw
        sample = reader(file.path)
        at = points or [_center(size_of(sample))]
        seen = view(model, sample, file.path, layers, at, lattice=drawn and args.html)
        attention.add(seen, f"{index} {file.path.stem}", file.label)
        if drawn or seen.maps:  # the attention of all images has a file of its own
            output.numbers(f"{file.path.stem}_{index}", numbers_of(seen))
        if drawn:
            _draw_maps(output, seen, index, args.limit)
            views.append(seen)
    _write_summaries(output, attention, weights_of(layers), args.limit)
    if args.html:
        _write_page(args.out / PAGE, views, args.config)
    if any(seen.maps for seen in views) and len(files) > args.draw:
        left_out = len(files) - args.draw
        print(f"maps of {left_out} of {len(files)} images not drawn: --draw sets how many are")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = config_parser(__doc__)
    parser.add_argument("checkpoint", help="checkpoint file of the trained model")
    parser.add_argument(
        "images", nargs="+", metavar="image", help="image files, or folders; class folders in them"
    )
    parser.add_argument(
        "--layers",
        default="",
        metavar="REGEX",
        help="draw the layers in whose names this regular expression is found (all)",
    )
    parser.add_argument(
        "--points",
        nargs="+",
        default=[],
        metavar="X,Y",
        help="show the kernels at these pixels of the image as the network sees it (its center)",
    )
    parser.add_argument("--html", action="store_true", help=f"write the page {PAGE} as well")
    _add_limits(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("work_dirs/layers"),
        metavar="DIR",
        help="folder for the pictures and numbers (%(default)s)",
    )
    return parser.parse_args(arguments)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--draw",
        type=positive,
        default=4,
        metavar="IMAGES",
        help="draw the maps of the first images only (%(default)s); the rest is of all",
    )
    parser.add_argument(
        "--limit",
        type=positive,
        default=24,
        metavar="COUNT",
        help="groups, layers, images or classes in a picture at most (%(default)s)",
    )


def _point(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().lstrip("-").isdigit() for part in parts):
        raise ArgumentError(f"--points expects X,Y in whole pixels, got {text!r}")
    return int(parts[0]), int(parts[1])


def _center(size: tuple[int, int]) -> tuple[int, int]:
    height, width = size
    return width // 2, height // 2


class _Output:
    """Writes pictures by mmengine's visualizer, and tells each file.

    Args:
        folder: The folder, which exists.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        backend = dict(type="LocalVisBackend", save_dir=str(folder), img_save_dir="")
        self.visualizer = Visualizer(vis_backends=[backend])

    def picture(self, name: str, picture: np.ndarray, index: int = 0) -> None:
        """Writes ``<name>_<index>.png``."""
        self.visualizer.add_image(name, picture, index)
        print(self.folder / f"{name}_{index}.png")

    def numbers(self, name: str, numbers: Mapping[str, np.ndarray]) -> None:
        """Writes ``<name>.npz``."""
        save_numbers(self.folder / f"{name}.npz", numbers)
        print(self.folder / f"{name}.npz")


def _draw_maps(output: _Output, seen: View, index: int, limit: int) -> None:
    for name, picture in pictures_of(seen, limit):
        output.picture(f"{name}.{seen.path.stem}", picture, index)


def _write_summaries(
    output: _Output, attention: AttentionReport, weights: Mapping[str, Any], limit: int
) -> None:
    for name, picture in (*attention.pictures(limit), *weight_pictures(weights)):
        output.picture(name, picture)
    if attention.rows:
        output.numbers("attention", attention.numbers())
    if weights:
        output.numbers("weights", weight_numbers(weights))


def _write_page(path: Path, views: Sequence[View], config: str) -> None:
    views = [seen for seen in views if seen.over_image]
    if not views:
        raise UserError(
            "--html shows maps over the image (Involution2d, SAConv2d), and none of the layers has "
            "any; the other files were written"
        )
    write_page(path, views, f"{Path(config).stem}: what its layers compute")
    print(path)


if __name__ == "__main__":
    sys.exit(run(main))
