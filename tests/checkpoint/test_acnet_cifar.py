"""Checkpoints of the networks that ACNet's authors train on CIFAR-10 load into the configs here."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import Tensor

from rednet.checkpoint.published import convert
from rednet.cli.model import build_with_stem

pytest.importorskip("mmpretrain", reason="the classifiers are mmpretrain's")
FOLDER = Path(__file__).parents[2] / "configs/variants"
NORM = ("weight", "bias", "running_mean", "running_var")

# ---- the entries of the authors' networks, in the order of their state_dict


def norm(name: str) -> Iterator[str]:
    yield from (f"{name}.{each}" for each in NORM)


def block(name: str) -> Iterator[str]:
    for branch in ("square", "ver", "hor"):
        yield f"{name}.{branch}_conv.weight"
        yield from norm(f"{name}.{branch}_bn")


def linear(*names: str) -> Iterator[str]:
    yield from (f"{name}.{each}" for name in names for each in ("weight", "bias"))


def cifar_quick() -> Iterator[str]:
    for number in (1, 2, 3):
        yield from block(f"conv{number}.acb")
    yield from linear("fc1", "fc2")


def vgg16() -> Iterator[str]:
    for number in range(1, 14):
        yield from block(f"stem.conv{number}.acb")
    yield from linear("linear1", "linear2")


def resnet56() -> Iterator[str]:
    yield from block("stage1.conv1")
    for stage in (1, 2, 3):
        if stage > 1:
            yield f"stage{stage}.projection.conv.weight"
            yield from norm(f"stage{stage}.projection.bn")
        for number in range(9):
            yield from block(f"stage{stage}.block{number}.conv1.acb")
            yield from block(f"stage{stage}.block{number}.conv2")
    yield from linear("linear")


def wide_resnet() -> Iterator[str]:
    yield from block("conv1")
    for stage in (1, 2, 3):
        yield from norm(f"stage{stage}.block1.proj.bn")
        yield f"stage{stage}.block1.proj.conv.weight"
        for number in (1, 2):
            for convolution in ("conv1", "conv2"):
                yield from norm(f"stage{stage}.block{number}.{convolution}.bn")
                yield from block(f"stage{stage}.block{number}.{convolution}.acb")
    yield from norm("last_bn")
    yield from linear("linear")


NETWORKS = {
    "cifar-quick": (
        cifar_quick,
        {
            "conv3.acb.ver_conv.weight": "backbone.conv3.conv.ver_conv.weight",
            "fc1.weight": "neck.fc.weight",
            "fc2.bias": "head.fc.bias",
        },
    ),
    "vgg16": (
        vgg16,
        {
            "stem.conv2.acb.hor_bn.bias": "backbone.features.1.conv.hor_bn.bias",
            "stem.conv3.acb.square_conv.weight": "backbone.features.3.conv.square_conv.weight",
            "stem.conv13.acb.square_bn.weight": "backbone.features.16.conv.square_bn.weight",
            "linear1.weight": "neck.fc.weight",
        },
    ),
    "resnet56": (
        resnet56,
        {
            "stage1.conv1.square_bn.weight": "backbone.conv1.conv.square_bn.weight",
            "stage3.block8.conv2.ver_bn.bias": "backbone.layer3.8.conv2.conv.ver_bn.bias",
            "stage2.projection.bn.bias": "backbone.layer2.0.downsample.bn.bias",
            "linear.weight": "head.fc.weight",
        },
    ),
    "wrn-16-8": (
        wide_resnet,
        {
            "conv1.hor_conv.weight": "backbone.conv1.conv.hor_conv.weight",
            "stage1.block2.conv1.bn.bias": "backbone.layer1.1.conv1.bn.bias",
            "stage3.block1.proj.conv.weight": "backbone.layer3.0.shortcut.conv.weight",
            "last_bn.running_var": "backbone.bn.running_var",
        },
    ),
}


@pytest.mark.parametrize(
    ("name", "wrapper"), [*((name, "") for name in NETWORKS), ("cifar-quick", "module.")]
)
def test_a_published_network_is_renamed(name: str, wrapper: str) -> None:
    entries, examples = NETWORKS[name]
    build = partial(build_with_stem, Config.fromfile(FOLDER / f"{name}_acblock_cifar10.py"))
    own = build(None).state_dict()
    state: dict[str, Tensor] = {}
    unnumbered = convert({f"{wrapper}{key}": torch.zeros(1) for key in entries()})
    for old, new in unnumbered.renamed.items():
        state[old] = torch.rand_like(own[new])
    assert len(state) == len(list(entries()))
    result = convert(state, build)
    assert not result.refused and not result.missing and not result.taken
    assert result.state_dict.keys() == own.keys()
    assert set(result.added) == {key for key in own if key.endswith("num_batches_tracked")}
    for old, new in examples.items():
        assert result.renamed[f"{wrapper}{old}"] == new
        assert result.state_dict[new] is state[f"{wrapper}{old}"]
