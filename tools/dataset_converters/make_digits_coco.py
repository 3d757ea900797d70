"""Make a detection data set in COCO's format: handwritten digits on photographs.

With --semantic it is a segmentation data set in mmseg's form as well. Digits and photographs come
with scikit-learn; nothing is downloaded. The same options always give the same files.

The photographs are scikit-learn's, by danielbuechele and vultilion, under CC BY 2.0.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rednet.cli.command import run
from rednet.cli.paths import check_output
from rednet.datasets.digits_coco import annotation_file, check_annotations, write_digits_coco
from rednet.datasets.digits_scenes import MOST_DIGITS


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the data set and checks it with pycocotools."""
    args = _parse(arguments)
    check_output(args.folder, "the folder", folder=True)
    images = dict(train=args.train, val=args.val)
    write_digits_coco(
        args.folder,
        images,
        tuple(args.size),
        args.seed,
        args.overwrite,
        args.semantic,
        args.most_digits,
    )
    for split in images:
        path = annotation_file(args.folder, split)
        counts = check_annotations(path)
        print(f"{path}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder", nargs="?", default="data/digits_coco", help="folder to write (%(default)s)"
    )
    parser.add_argument("--train", type=int, default=1200, help="training images (%(default)s)")
    parser.add_argument("--val", type=int, default=200, help="validation images (%(default)s)")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(128, 128),
        metavar=("HEIGHT", "WIDTH"),
        help="height and width of the images in pixels, 64 to 65500 each (128 128)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of everything random, at least 0 (%(default)s)",
    )
    parser.add_argument(
        "--most-digits",
        type=int,
        default=MOST_DIGITS,
        help="digits in an image at most, besides a group of small ones (%(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing data set")
    parser.add_argument(
        "--semantic",
        action="store_true",
        help="write the class of every pixel to semantic/train and semantic/val too, for mmseg",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(run(main))
