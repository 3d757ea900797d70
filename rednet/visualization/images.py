"""Image files, brought into a model as its test pipeline does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import TRANSFORMS
from torch import nn

from rednet.errors import ImageError, UserError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Transforms that read an image; all others whose name begins with "Load" read annotations.
_IMAGE_LOADERS = ("LoadImage", "LoadImageFromFile", "LoadImageFromNDArray")
_LOADERS = ("test_dataloader", "val_dataloader")


@dataclass(frozen=True)
class ImageFile:
    """An image file and, where it was found in a folder of folders, its class."""

    path: Path
    label: str | None = None


def find_images(paths: Sequence[str | Path]) -> list[ImageFile]:
    """Lists files as they are given, and for a folder the image files below it.

    The images of a folder's folders belong to the class of their folder's name.

    Raises:
        ImageError: If a path does not exist or a folder holds no image.
    """
    found: list[ImageFile] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += _images_below(path)
        elif path.is_file():
            found.append(ImageFile(path))
        else:
            raise ImageError(f"cannot read image {path}: no such file or directory")
    return found


def _images_below(folder: Path) -> list[ImageFile]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ImageError(f"the folder {folder} holds no image ({', '.join(SUFFIXES)})")
    return [
        ImageFile(path, None if path.parent == folder else path.relative_to(folder).parts[0])
        for path in files
    ]


class ImageReader:
    """Reads image files by the test pipeline of a config, without its annotations.

    Args:
        config: A config of OpenMMLab's form; ``test_dataloader`` or ``val_dataloader`` has the
            pipeline.

    Raises:
        UserError: If the config has no pipeline.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.pipeline = Compose([TRANSFORMS.build(each) for each in _without_annotations(config)])

    def __call__(self, path: str | Path) -> dict[str, Any]:
        """Reads a file.

        Returns:
            ``inputs``, (C, H, W), and ``data_samples``, as a data set would give them.

        Raises:
            ImageError: If the file is missing, truncated or not an image.
        """
        sample = dict(img_path=str(path), img_id=0, seg_fields=[], reduce_zero_label=False)
        return self.pipeline(sample)


def _without_annotations(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    loader = {"type": "LoadImage"}
    kept = []
    for transform in _pipeline(config):
        kind = transform["type"]
        name = (kind if isinstance(kind, str) else kind.__name__).rpartition(".")[2]
        if name in _IMAGE_LOADERS:
            own = ("to_float32", "color_type")
            loader.update((key, transform[key]) for key in own if key in transform)
        elif not name.startswith("Load"):
            kept.append(dict(transform))
    return [loader, *kept]


def _pipeline(config: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    datasets = [(config.get(loader) or {}).get("dataset") for loader in _LOADERS]
    for dataset in datasets:
        while isinstance(dataset, Mapping):
            if dataset.get("pipeline"):
                return dataset["pipeline"]
            inner = dataset.get("datasets") or [None]
            dataset = dataset.get("dataset") or inner[0]
    raise UserError(f"the config has no pipeline to read images with in {' or '.join(_LOADERS)}")


def size_of(sample: Mapping[str, Any]) -> tuple[int, int]:
    """The height and the width of an image after the pipeline."""
    height, width = sample["inputs"].shape[-2:]
    return int(height), int(width)


def picture_of(sample: Mapping[str, Any]) -> np.ndarray:
    """An image after the pipeline as RGB, uint8 (H, W, 3).

    Pipelines give uint8 in BGR and leave the normalization to the model. One that normalizes gives
    other numbers, which are spread over 0 to 255.
    """
    pixels = sample["inputs"].detach().cpu().numpy().transpose(1, 2, 0)
    if pixels.dtype != np.uint8:
        low, high = pixels.min(), pixels.max()
        pixels = ((pixels - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
    if pixels.shape[2] != 3:
        return np.repeat(pixels[..., :1], 3, axis=2)
    return np.ascontiguousarray(pixels[..., ::-1])


def preprocess(model: nn.Module, sample: Mapping[str, Any]) -> dict[str, Any]:
    """A batch of one image, normalized and padded by the model's own preprocessor."""
    preprocessor: Any = model.data_preprocessor
    # A copy, because a model writes what it predicts into the data samples.
    return preprocessor(pseudo_collate([deepcopy(sample)]), False)
