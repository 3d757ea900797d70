"""Checkpoints of ACNet's authors load into the configs here."""

from __future__ import annotations

import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import Tensor

from rednet.checkpoint.published import convert
from rednet.checkpoint.reading import read_state_dict
from rednet.cli.model import build_with_stem
from rednet.errors import MissingDependencyError, UserError

pytest.importorskip("mmpretrain", reason="the classifiers are mmpretrain's")
FOLDER = Path(__file__).parents[2] / "configs/variants"


def build(name: str):
    config = Config.fromfile(FOLDER / f"{name}_imagenet.py")
    return partial(build_with_stem, config)


def authors_name(name: str) -> str:
    """The name that the code of ACNet's authors gives to an entry of an mmpretrain classifier.

    ``conv1`` is a Sequential of conv, bn and relu, and so is each convolution of a block. A block's
    last convolution has no ReLU: there the asymmetric block stands in the place of the Sequential.
    """
    name = name.removeprefix("backbone.").replace("head.fc.", "fc.")
    name = re.sub(r"^conv1\.(?=weight)", "conv1.conv.", name)
    name = re.sub(r"^bn1\.", "conv1.bn.", name)
    name = re.sub(r"^layer(\d)\.0\.downsample\.0", r"stage\1.projection.conv", name)
    name = re.sub(r"^layer(\d)\.0\.downsample\.1", r"stage\1.projection.bn", name)
    name = re.sub(r"^layer(\d)\.(\d+)\.bn(\d)", r"stage\1.block\2.conv\3.bn", name)
    name = re.sub(r"^layer(\d)\.(\d+)\.conv(\d)\.(?=weight)", r"stage\1.block\2.conv\3.conv.", name)
    return re.sub(r"^layer(\d)\.(\d+)\.conv(\d)\.(?=\w+_)", r"stage\1.block\2.conv\3.", name)


def in_a_sequential(name: str) -> str:
    """The name in ResNet-18 and ResNet-34, whose stages are Sequentials."""
    name = re.sub(r"^stage(\d)\.projection", r"stage\1.0.shortcut", name)
    return re.sub(r"^stage(\d)\.block(\d+)", r"stage\1.\2", name).replace("fc.", "linear.")


def published(name: str) -> dict[str, Tensor]:
    """A file with random values, as the authors' code writes it."""
    last = "conv3" if "50" in name else "conv2"
    state = {}
    for key, value in build(name)(None).state_dict().items():
        key = authors_name(key)
        if f".{last}." not in key:  # a ReLU follows
            key = re.sub(r"(block\d+\.conv\d)\.(?=(square|ver|hor)_)", r"\1.acb.", key)
        if not key.endswith("num_batches_tracked"):
            state[key if "50" in name else in_a_sequential(key)] = torch.rand_like(value)
    return state


@pytest.mark.parametrize("name", ["resnet18_acblock", "resnet34_acblock", "resnet50_acblock"])
def test_a_published_acnet_is_renamed(name: str) -> None:
    state = published(name)
    assert "stage1.0.conv1.acb.square_conv.weight" in state or "50" in name
    result = convert({f"module.{key}": value for key, value in state.items()}, build(name))
    assert not result.refused and not result.missing
    build(name)(None).load_state_dict(result.state_dict)
    for key, value in result.state_dict.items():
        if key not in result.added:
            assert (
                value
                is state[
                    next(old for old, new in result.renamed.items() if new == key)[len("module.") :]
                ]
            )


def test_an_acnet_without_norms_is_told_what_is_missing() -> None:
    state = {key: value for key, value in published("resnet18_acblock").items() if "_bn" not in key}
    result = convert(state, build("resnet18_acblock"))
    assert len([name for name in result.missing if "num_batches" not in name]) == 16 * 3 * 4
    assert all("_bn." in name for name in result.missing)


def test_hdf5_is_read(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "finish.hdf5"
    state = published("resnet18_acblock")
    with h5py.File(path, "w") as file:
        for key, value in state.items():
            file.create_dataset(key.replace("/", "+"), data=value.numpy())
    read = read_state_dict(path)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], value) for key, value in state.items())
    result = convert(read, build("resnet18_acblock"))
    assert not result.refused and not result.missing
    path.write_bytes(b"no HDF5")
    with pytest.raises(UserError, match="is not a file of HDF5 that can be read"):
        read_state_dict(path)
    with h5py.File(path, "w") as file:
        file.create_group("stage1")
    with pytest.raises(UserError, match="the entry stage1 must be an array of numbers"):
        read_state_dict(path)


def test_hdf5_needs_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    path = tmp_path / "finish.hdf5"
    path.touch()
    with pytest.raises(MissingDependencyError, match="finish.hdf5 needs h5py: pip install h5py"):
        read_state_dict(path)
