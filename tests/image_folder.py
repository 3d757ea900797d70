"""A tiny image folder of ImageNet's form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

CLASSES = ("n01440764", "n01443537", "n01484850")
IMAGES = dict(train=4, val=2)


def write_image_folder(root: Path, classes: Sequence[str] = CLASSES) -> Path:
    """Writes a few 32-pixel images a class below root/train and root/val."""
    generator = np.random.default_rng(0)
    for split, count in IMAGES.items():
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                image = generator.integers(0, 255, (32, 36, 3), dtype=np.uint8)
                content = cv2.imencode(".jpg", image)[1].tobytes()
                (folder / f"{name}_{index}.JPEG").write_bytes(content)
    return root
