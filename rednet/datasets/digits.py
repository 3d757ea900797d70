"""Scikit-learn's handwritten digits: a small real data set that needs no download."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset

from rednet.errors import ArgumentError, MissingDependencyError
from rednet.registry import DATASETS

SPLITS = ("train", "val")
# Of each class, every fifth image in the order of the files is for validation.
VAL_PERIOD = 5
LARGEST_GRAY = 16.0


@DATASETS.register_module()
class Digits(BaseDataset):
    """The 1,797 handwritten digits that come with scikit-learn, as 8 x 8 images of 10 classes.

    They are the test set of `Optical Recognition of Handwritten Digits
    <https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits>`_. The split
    is fixed and stratified: every fifth image of each class is for validation (355 images), the
    others are for training (1,442). Each sample is a dict of ``img`` (uint8, shape (8, 8, 3), black
    background) and ``gt_label`` (int), the keys that mmpretrain's pipelines expect.

    Args:
        split: ``'train'`` or ``'val'``.
        test_mode: Whether a sample that fails is an error. If False, another sample replaces it;
            by default only in training.
        **kwargs: ``pipeline``, ``indices``, ``lazy_init`` and other arguments of
            :class:`mmengine.dataset.BaseDataset`.

    Raises:
        ArgumentError: If ``split`` is neither of the two.
        MissingDependencyError: If scikit-learn is not installed.

    Examples:
        >>> from rednet.datasets import Digits
        >>> digits = Digits(split="val")
        >>> len(digits), digits[0]["img"].shape, digits.metainfo["classes"][:3]
        (355, (8, 8, 3), ('0', '1', '2'))
    """

    METAINFO = dict(classes=tuple("0123456789"))

    def __init__(
        self, split: str = "train", *, test_mode: bool | None = None, **kwargs: Any
    ) -> None:
        if split not in SPLITS:
            raise ArgumentError(f"split of Digits must be one of {SPLITS}, got {split!r}")
        self.split = split
        super().__init__(test_mode=split == "val" if test_mode is None else test_mode, **kwargs)

    @property
    def CLASSES(self) -> tuple[str, ...]:  # the name that mmpretrain's tools read
        """The names of the classes."""
        return self.metainfo["classes"]

    def load_data_list(self) -> list[dict]:
        """Reads the images and labels of the split."""
        images, labels = _load_digits()
        members = np.flatnonzero(_is_val(labels) == (self.split == "val"))
        return [dict(img=images[index], gt_label=int(labels[index])) for index in members]

    def get_cat_ids(self, idx: int) -> list[int]:
        """Returns the class of one sample, in a list, as samplers and data set wrappers expect."""
        return [int(self.get_data_info(idx)["gt_label"])]


def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    """All images, uint8 (1797, 8, 8, 3), and their labels, int64 (1797,)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependencyError(
            "the Digits data set is part of scikit-learn, which is not installed: "
            "pip install scikit-learn"
        ) from error
    digits = load_digits()
    gray = np.round(digits.images * (255 / LARGEST_GRAY)).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1), digits.target.astype(np.int64)


def _is_val(labels: np.ndarray) -> np.ndarray:
    """Marks the last of every ``VAL_PERIOD`` images of each class."""
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        mask[np.flatnonzero(labels == label)[VAL_PERIOD - 1 :: VAL_PERIOD]] = True
    return mask
