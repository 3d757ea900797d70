"""Write scikit-learn's handwritten digits as image files: FOLDER/{train,val}/<class>/<index>.png.

The folders have ImageNet's form. The split is that of the Digits data set of the demos.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2

from rednet.cli.command import run
from rednet.cli.paths import check_output
from rednet.datasets import Digits
from rednet.datasets.digits import SPLITS
from rednet.errors import UserError


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the files."""
    folder = _parse(arguments).folder
    check_output(folder, "the folder", folder=True)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"the folder {folder} is not empty: give another, or remove it")
    for split in SPLITS:
        digits = Digits(split=split)
        for index, sample in enumerate(digits):
            path = folder / split / str(sample["gt_label"]) / f"{index:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(".png", sample["img"])[1].tobytes())
        print(f"{folder / split}: {len(digits)} images")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("data/digits"),
        help="folder to write (%(default)s)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(run(main))
