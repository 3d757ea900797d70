from __future__ import annotations

import sys

import numpy as np
import pytest

from rednet.datasets import Digits
from rednet.errors import ArgumentError, MissingDependencyError
from rednet.registry import DATASETS

pytest.importorskip("sklearn")


def images(dataset: Digits) -> np.ndarray:
    return np.stack([each["img"] for each in dataset])


def labels(dataset: Digits) -> np.ndarray:
    return np.array([each["gt_label"] for each in dataset])


def test_the_split_is_a_partition_of_all_digits() -> None:
    from sklearn.datasets import load_digits

    parts = [images(Digits(split=split)) for split in ("train", "val")]
    assert [len(part) for part in parts] == [1442, 355]
    ours = np.sort(np.concatenate(parts).reshape(1797, -1), axis=0)
    theirs = np.repeat(np.round(load_digits().data * 255 / 16), 3, axis=1)
    np.testing.assert_array_equal(ours, np.sort(theirs, axis=0))


def test_the_split_is_stratified_and_fixed() -> None:
    val = labels(Digits(split="val"))
    assert np.bincount(val).tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
    assert val[:12].tolist() == [5, 0, 9, 8, 7, 1, 2, 6, 3, 4, 0, 2]


def test_a_sample_has_the_keys_of_mmpretrain() -> None:
    sample = Digits(split="val")[0]
    assert sample["img"].shape == (8, 8, 3)
    assert sample["img"].dtype == np.uint8
    assert sample["img"].max() == 255
    assert isinstance(sample["gt_label"], int)


def test_it_is_registered_with_its_classes() -> None:
    dataset = DATASETS.build(dict(type="Digits", split="val", lazy_init=True))
    assert dataset.metainfo["classes"] == dataset.CLASSES == tuple("0123456789")
    assert dataset.test_mode and not Digits(lazy_init=True).test_mode
    assert dataset.get_cat_ids(0) == [dataset[0]["gt_label"]]


def test_a_subset() -> None:
    assert len(Digits(indices=10)) == 10


def test_it_goes_through_a_pipeline_of_mmpretrain() -> None:
    pytest.importorskip("mmpretrain")
    from mmpretrain.registry import TRANSFORMS

    steps = [dict(type="Resize", scale=32), dict(type="PackInputs")]
    sample = Digits(pipeline=[TRANSFORMS.build(step) for step in steps])[3]
    assert sample["inputs"].shape == (3, 32, 32)
    assert sample["data_samples"].gt_label.item() == labels(Digits(indices=4))[3]


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"split of Digits must be one of .*'val'.*, got 'foo'"):
        Digits(split="foo")


def test_without_scikit_learn_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingDependencyError, match="pip install scikit-learn"):
        Digits()
