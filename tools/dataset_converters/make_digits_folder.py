"""Write scikit-learn's handwritten digits as image files: FOLDER/{train,val}/<class>/<index>.png.

The folders have ImageNet's form. The split is that of the Digits data set of the demos. With
--scenes, the images are digits on photographs, cut out of the scenes of make_digits_coco.py: 2,000
to train, 1,000 to choose by (val) and 1,000 to test, of other scenes with the digits of val. The
same options always give the same files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from rednet.cli.command import run
from rednet.cli.paths import check_output
from rednet.datasets import Digits
from rednet.datasets.digits import SPLITS
from rednet.datasets.digits_scenes import crops
from rednet.errors import UserError
from rednet.files import failing_as_user_error

CROP_SIDE = 48
# Split of the digits and photographs, seed of the scenes and number of images, by folder.
SCENES = {"train": ("train", 0, 2000), "val": ("val", 1, 1000), "test": ("val", 0, 1000)}
Images = Iterable[tuple[np.ndarray, int]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the files."""
    args = _parse(arguments)
    folder = args.folder
    check_output(folder, "the folder", folder=True)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"the folder {folder} is not empty: give another, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with failing_as_user_error(folder), TemporaryDirectory(dir=folder.parent) as aside:
        # Renamed when all of it is written.
        whole = Path(aside, folder.name)
        splits = _scenes() if args.scenes else _digits()
        counts = {split: _write(whole / split, images) for split, images in splits.items()}
        whole.replace(folder)
    for split, count in counts.items():
        print(f"{folder / split}: {count} images")


def _digits() -> Mapping[str, Images]:
    return {
        split: [(each["img"], each["gt_label"]) for each in Digits(split=split)] for split in SPLITS
    }


def _scenes() -> Mapping[str, Images]:
    return {
        folder: islice(crops(split, CROP_SIDE, seed), count)
        for folder, (split, seed, count) in SCENES.items()
    }


def _write(folder: Path, images: Images) -> int:
    """Returns how many they are."""
    count = 0
    for image, label in images:
        path = folder / str(label) / f"{count:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
        count += 1
    return count


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("data/digits"),
        help="folder to write (%(default)s)",
    )
    parser.add_argument(
        "--scenes", action="store_true", help="digits cut out of scenes: a harder data set"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(run(main))
