from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MMLogger
from torch import Tensor, nn

import rednet
from rednet.engine.backbone_checkpoint_hook import BackboneCheckpointHook, names_in_model


def _backbone() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))


class Classifier(nn.Module):
    """Has the parts, by the names, that mmpretrain's classifiers have."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.backbone = rednet.swap_conv(_backbone(), dict(type="ODConv2d"))
        self.head = nn.ModuleDict(dict(fc=nn.Linear(4, classes)))


def _torchvision() -> dict[str, Tensor]:
    """A backbone and a classifier side by side."""
    classifier = {"fc.weight": torch.ones(5, 4), "fc.bias": torch.ones(5)}
    return {**_backbone().state_dict(), **classifier}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_bare_backbones_entries_find_their_places(nested: bool, prefix: str) -> None:
    model = Classifier()
    plain = _torchvision()
    entries = {prefix + name: value for name, value in plain.items()}
    checkpoint = {"state_dict": entries} if nested else entries
    runner = SimpleNamespace(model=model, logger=MMLogger.get_current_instance())
    BackboneCheckpointHook().after_load_checkpoint(runner, checkpoint)
    assert not model.load_state_dict(entries, strict=False).unexpected_keys
    assert model.head["fc"].weight.eq(1).all()
    torch.testing.assert_close(
        model.backbone[0].weight, (8 * plain["0.weight"]).expand(4, -1, -1, -1, -1)
    )


def test_another_number_of_classes_leaves_the_classifier() -> None:
    names = names_in_model(Classifier(classes=7), _torchvision())
    assert names["0.weight"] == "backbone.0.weight"
    assert not any(name.startswith("fc") for name in names)


@pytest.mark.parametrize(
    ("model", "checkpoint"),
    [
        (Classifier(), Classifier().state_dict()),
        (_backbone(), _torchvision()),
        (Classifier(), {"other.weight": torch.ones(1)}),
        (Classifier(), {"fc.weight": torch.ones(5, 4)}),
    ],
    ids=["complete", "no backbone", "another model's", "classifier alone"],
)
def test_other_checkpoints_stay_as_they_are(model: nn.Module, checkpoint: dict) -> None:
    assert names_in_model(model, checkpoint) == {}
