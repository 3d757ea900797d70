"""Write scikit-learn's handwritten digits as image files: FOLDER/{train,val}/<class>/<index>.png.

The folders have ImageNet's form. The split is that of the Digits data set of the demos.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2

from rednet.checkpoint.writing import failing_as_user_error
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
    folder.parent.mkdir(parents=True, exist_ok=True)
    with failing_as_user_error(folder), TemporaryDirectory(dir=folder.parent) as aside:
        # Renamed when all of it is written.
        whole = Path(aside, folder.name)
        counts = {split: _write_split(whole / split, split) for split in SPLITS}
        whole.replace(folder)
    for split, count in counts.items():
        print(f"{folder / split}: {count} images")


def _write_split(folder: Path, split: str) -> int:
    digits = Digits(split=split)
    for index, sample in enumerate(digits):
        path = folder / str(sample["gt_label"]) / f"{index:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", sample["img"])[1].tobytes())
    return len(digits)


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
