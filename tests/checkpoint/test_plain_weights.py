from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

import rednet
from rednet.checkpoint.plain_weights import compare_with_checkpoint
from rednet.engine import BackboneCheckpointHook
from tests.layers.cases import randomized


def _network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 3), nn.ReLU())


@pytest.fixture
def lines() -> list[str]:
    """The log lines of a fresh current logger."""
    logger = MMLogger.get_instance(f"plain-weights-{len(MMLogger._instance_dict)}")
    collected: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            collected.append(record.getMessage())

    logger.addHandler(Collect())
    return collected


def test_compare_counts_taken_expanded_initial_and_unused() -> None:
    plain = _network().state_dict()
    swapped = rednet.swap_conv(_network(), dict(type="ConvAWS2d"), include="0")
    rednet.swap_conv(swapped, dict(type="Involution2d"), include="2")
    result = compare_with_checkpoint(swapped, plain)
    assert len([key for key in result.taken if key.startswith("1.")]) == 5
    assert result.expanded == ["0"]
    assert "2.conv1.conv.weight" in result.initial and not any("0." in n for n in result.initial)
    assert result.unused == ["2.weight"]
    assert result.taken[-1] == "2.bias"


def test_compare_counts_what_does_not_fit_as_unused() -> None:
    convolutions = [nn.Sequential(nn.Conv2d(3, 8, 3, bias=bias)) for bias in (True, False)]
    plain, swapped = convolutions[0], rednet.swap_conv(convolutions[1], dict(type="ConvAWS2d"))
    linear = nn.Linear(8, 5)
    plain.append(nn.Linear(8, 7)), swapped.append(linear)
    result = compare_with_checkpoint(swapped, plain.state_dict())
    assert result == ([], ["0"], ["1.weight", "1.bias"], ["0.bias", "1.bias", "1.weight"])


@pytest.mark.parametrize("loader", ["torch", "mmengine"])
def test_a_plain_checkpoint_is_reported_in_one_line(loader: str, lines: list[str]) -> None:
    plain = nn.ModuleDict({"backbone": _network()})
    swapped = nn.ModuleDict({"backbone": rednet.swap_conv(_network(), dict(type="ConvAWS2d"))})
    if loader == "torch":
        swapped.load_state_dict(plain.state_dict())
    else:
        load_state_dict(swapped, plain.state_dict())
    (line,) = [line for line in lines if "convolutions expanded" in line]
    assert "Sequential: 5 entries of the checkpoint taken as they are, 2 convolutions" in line
    image = torch.randn(1, 3, 8, 8)
    plain.eval(), swapped.eval()
    torch.testing.assert_close(swapped["backbone"](image), plain["backbone"](image))


def test_a_complete_checkpoint_is_not_worth_a_line(lines: list[str]) -> None:
    swapped = rednet.swap_conv(_network(), dict(type="ConvAWS2d"))
    swapped.load_state_dict(swapped.state_dict())
    assert not [line for line in lines if "expanded" in line]


PLAIN_LAYERS = ["ACBlock", "CondConv2d", "ConvAWS2d", "DynamicConv2d", "ODConv2d", "SAConv2d"]


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A ResNet-18 of torchvision, files with its weights, and mmpretrain's config of it."""
    torchvision = pytest.importorskip("torchvision")
    pytest.importorskip("mmpretrain", reason="it has OpenMMLab's ResNet")
    import mmpretrain.models  # noqa: F401

    model = randomized(torchvision.models.resnet18(num_classes=10)).eval()
    folder = tmp_path_factory.mktemp("resnet")
    state = model.state_dict()
    torch.save(state, folder / "torchvision.pth")
    openmmlab = {
        f"head.{key}" if key.startswith("fc.") else f"backbone.{key}": value
        for key, value in state.items()
    }
    torch.save({"state_dict": openmmlab, "meta": {}}, folder / "openmmlab.pth")
    return SimpleNamespace(model=model, folder=folder)


def _classifier(layer: str, init_cfg: dict | None = None) -> nn.Module:
    backbone = dict(
        type="SwapConv",
        module=dict(type="ResNet", depth=18, num_stages=4, init_cfg=init_cfg),
        conv_cfg=dict(type=layer),
        include=r"^layer1\.\d\.conv[12]$",
    )
    head = dict(type="LinearClsHead", num_classes=10, in_channels=512)
    neck = dict(type="GlobalAveragePooling")
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        return MODELS.build(dict(type="ImageClassifier", backbone=backbone, neck=neck, head=head))


@pytest.mark.parametrize(
    ("layer", "source", "way"),
    [
        *((layer, "torchvision", "init_cfg") for layer in PLAIN_LAYERS),
        ("ODConv2d", "torchvision", "load_from"),
        ("SAConv2d", "openmmlab", "init_cfg"),
        ("ACBlock", "openmmlab", "load_from"),
    ],
)
def test_a_resnets_weights_load_into_the_swapped_one(
    resnet: Any, layer: str, source: str, way: str, lines: list[str]
) -> None:
    file = str(resnet.folder / f"{source}.pth")
    expected, image = resnet.model, torch.rand(1, 3, 33, 33)
    if way == "init_cfg":
        prefix = "backbone." if source == "openmmlab" else None
        classifier = _classifier(layer, dict(type="Pretrained", checkpoint=file, prefix=prefix))
        classifier.init_weights()
        classifier.head.fc.load_state_dict(expected.fc.state_dict())
    else:
        classifier = _classifier(layer)
        runner = SimpleNamespace(model=classifier, logger=MMLogger.get_current_instance())
        checkpoint = torch.load(file, weights_only=True)
        BackboneCheckpointHook().after_load_checkpoint(runner, checkpoint)
        load_state_dict(classifier, checkpoint.get("state_dict", checkpoint))
    output = classifier.eval()(image)
    torch.testing.assert_close(output, expected(image), rtol=1e-3, atol=1e-4)
    assert any(
        "ResNet: 116 entries" in line and "4 convolutions expanded" in line for line in lines
    )
