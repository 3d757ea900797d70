from __future__ import annotations

import logging

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

import rednet
from rednet.models.plain_weights import compare_with_checkpoint


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
